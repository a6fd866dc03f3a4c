#include "model/kernels/column_sums.cuh"
#include "model/kernels/norm_rows.cuh"
#include "model/kernels/rms_norm_cuda.h"

namespace hanok {
namespace cuda {
namespace {

// kPacks of N values a thread; a block (or, where it is one warp wide, each of its rows of threads) takes a row at a
// time.
template <class T, int N, int kPacks, bool kAdd>
__global__ void __launch_bounds__(512) forward_held(
    const T* x, const T* added, const T* weight, T* sum, T* y, Wide<T>* rstd, int64_t rows, int packs, Wide<T> eps) {
  using A = Wide<T>;
  __shared__ A slots[2][kMaxWarps];
  const int64_t dim = int64_t{packs} * N;
  Pack<T, N> w[kPacks], v[kPacks];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int at = threadIdx.x + p * blockDim.x;
    if (at < packs) w[p] = load<N>(weight + at * N);
  }
  int turn = 0;
  for (int64_t row = blockIdx.x * int64_t{blockDim.y} + threadIdx.y; row < rows;
       row += gridDim.x * int64_t{blockDim.y}) {
    A squares = 0;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = threadIdx.x + p * blockDim.x;
      if (at < packs) v[p] = load<N>(x + row * dim + at * N);
    }
    if constexpr (kAdd) {
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        const int at = threadIdx.x + p * blockDim.x;
        if (at >= packs) continue;
        const Pack<T, N> other = load<N>(added + row * dim + at * N);
        for (int i = 0; i < N; ++i) v[p].v[i] = narrow<T>(widen(v[p].v[i]) + widen(other.v[i]));
        store<N>(sum + row * dim + at * N, v[p]);
      }
    }
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (threadIdx.x + p * blockDim.x >= packs) continue;
      for (int i = 0; i < N; ++i) squares += widen(v[p].v[i]) * widen(v[p].v[i]);
    }
    const A scale = reciprocal_root(block_sum(squares, slots[turn]) / static_cast<A>(dim) + eps);
    turn ^= 1;
    if (threadIdx.x == 0) rstd[row] = scale;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = threadIdx.x + p * blockDim.x;
      if (at >= packs) continue;
      Pack<T, N> out;
      for (int i = 0; i < N; ++i) out.v[i] = narrow<T>(rounded<T>(widen(v[p].v[i]) * scale) * widen(w[p].v[i]));
      store<N>(y + row * dim + at * N, out);
    }
  }
}

// Rows of any width and alignment: read twice.
template <class T>
__global__ void forward_any(
    const T* x, const T* added, const T* weight, T* sum, T* y, Wide<T>* rstd, int64_t rows, int64_t dim, Wide<T> eps) {
  using A = Wide<T>;
  __shared__ A slots[2][kMaxWarps];
  int turn = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* source = x + row * dim;
    A squares = 0;
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) {
      T value = source[i];
      if (added) sum[row * dim + i] = value = narrow<T>(widen(value) + widen(added[row * dim + i]));
      squares += widen(value) * widen(value);
    }
    if (added) source = sum + row * dim;  // a thread reads what it wrote itself
    const A scale = reciprocal_root(block_sum(squares, slots[turn]) / static_cast<A>(dim) + eps);
    turn ^= 1;
    if (threadIdx.x == 0) rstd[row] = scale;
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x)
      y[row * dim + i] = narrow<T>(rounded<T>(widen(source[i]) * scale) * widen(weight[i]));
  }
}

// dx = rstd * (g - xhat * mean(g * xhat)) with g = dy * weight, xhat = x * rstd; dweight = sum over rows of dy * xhat.
template <class T, int N, int kPacks, bool kAdd>
__global__ void __launch_bounds__(512) backward_held(const T* dy,
                                                     const T* x,
                                                     const T* weight,
                                                     const T* dsum,
                                                     const Wide<T>* rstd,
                                                     T* dx,
                                                     Wide<T>* partial,
                                                     int64_t rows,
                                                     int packs) {
  using A = Wide<T>;
  __shared__ A slots[2][kMaxWarps];
  const int64_t dim = int64_t{packs} * N;
  const int64_t first = blockIdx.x * int64_t{blockDim.y} + threadIdx.y;
  Pack<T, N> w[kPacks], g[kPacks], v[kPacks], other[kAdd ? kPacks : 1];
  A dweight[kPacks][N] = {};
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int at = threadIdx.x + p * blockDim.x;
    if (at < packs) w[p] = load<N>(weight + at * N);
  }
  int turn = 0;
  for (int64_t row = first; row < rows; row += gridDim.x * int64_t{blockDim.y}) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = threadIdx.x + p * blockDim.x;
      if (at >= packs) continue;
      g[p] = load<N>(dy + row * dim + at * N);
      v[p] = load<N>(x + row * dim + at * N);
      if constexpr (kAdd) other[p] = load<N>(dsum + row * dim + at * N);
    }
    const A scale = rstd[row];
    A dot = 0;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (threadIdx.x + p * blockDim.x >= packs) continue;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A product = widen(g[p].v[i]) * (widen(v[p].v[i]) * scale);
        dot += product * widen(w[p].v[i]);
        dweight[p][i] += product;
      }
    }
    const A mean = block_sum(dot, slots[turn]) / static_cast<A>(dim);
    turn ^= 1;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = threadIdx.x + p * blockDim.x;
      if (at >= packs) continue;
      Pack<T, N> out;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        A d = scale * (widen(g[p].v[i]) * widen(w[p].v[i]) - widen(v[p].v[i]) * scale * mean);
        if constexpr (kAdd) d += widen(other[p].v[i]);
        out.v[i] = narrow<T>(d);
      }
      store<N>(dx + row * dim + at * N, out);
    }
  }
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int at = threadIdx.x + p * blockDim.x;
    if (at >= packs) continue;
#pragma unroll
    for (int i = 0; i < N; ++i) partial[first * dim + at * N + i] = dweight[p][i];
  }
}

template <class T>
__global__ void backward_any(
    const T* dy, const T* x, const T* weight, const T* dsum, const Wide<T>* rstd, T* dx, int64_t rows, int64_t dim) {
  using A = Wide<T>;
  __shared__ A slots[2][kMaxWarps];
  int turn = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T *g = dy + row * dim, *v = x + row * dim;
    const A scale = rstd[row];
    A dot = 0;
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x)
      dot += widen(g[i]) * (widen(v[i]) * scale) * widen(weight[i]);
    const A mean = block_sum(dot, slots[turn]) / static_cast<A>(dim);
    turn ^= 1;
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) {
      A d = scale * (widen(g[i]) * widen(weight[i]) - widen(v[i]) * scale * mean);
      if (dsum) d += widen(dsum[row * dim + i]);
      dx[row * dim + i] = narrow<T>(d);
    }
  }
}

// Row blockIdx.y of the partial sums takes every gridDim.y-th row.
template <class T>
__global__ void backward_weight_any(
    const T* dy, const T* x, const Wide<T>* rstd, Wide<T>* partial, int64_t rows, int64_t dim) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= dim) return;
  Wide<T> sum = 0;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y)
    sum += widen(dy[row * dim + i]) * (widen(x[row * dim + i]) * rstd[row]);
  partial[blockIdx.y * dim + i] = sum;
}

template <class T, int kPacks, bool kAdd>
void forward_held_on(const RmsNormForward& a, const NormRows& shape) {
  constexpr int N = kPackOf<T>;
  auto* kernel = forward_held<T, N, kPacks, kAdd>;
  const int64_t blocks =
      std::min<int64_t>(resident_blocks(kernel, shape.threads()), divide_up(a.rows, shape.rows_per_block));
  kernel<<<static_cast<unsigned>(blocks), shape.block(), 0, a.call.stream>>>(static_cast<const T*>(a.x),
                                                                             static_cast<const T*>(a.added),
                                                                             static_cast<const T*>(a.weight),
                                                                             static_cast<T*>(a.sum),
                                                                             static_cast<T*>(a.y),
                                                                             static_cast<Wide<T>*>(a.rstd),
                                                                             a.rows,
                                                                             static_cast<int>(a.dim / N),
                                                                             static_cast<Wide<T>>(a.eps));
}

template <class T>
void forward(const RmsNormForward& a) {
  constexpr int N = kPackOf<T>;
  const NormRows shape = norm_rows(a.dim / N);
  if constexpr (sizeof(T) < 8) {  // f64 is for tests
    if (shape.packs_per_thread > 0 && fits_packs<N, T>(a.dim, a.x, a.added, a.weight, a.sum, a.y)) {
      if (shape.packs_per_thread == 2)
        return a.added ? forward_held_on<T, 2, true>(a, shape) : forward_held_on<T, 2, false>(a, shape);
      return a.added ? forward_held_on<T, 4, true>(a, shape) : forward_held_on<T, 4, false>(a, shape);
    }
  }
  const int64_t blocks = std::min<int64_t>(a.rows, resident_blocks(forward_any<T>, 256));
  forward_any<T><<<static_cast<unsigned>(blocks), 256, 0, a.call.stream>>>(static_cast<const T*>(a.x),
                                                                           static_cast<const T*>(a.added),
                                                                           static_cast<const T*>(a.weight),
                                                                           static_cast<T*>(a.sum),
                                                                           static_cast<T*>(a.y),
                                                                           static_cast<Wide<T>*>(a.rstd),
                                                                           a.rows,
                                                                           a.dim,
                                                                           static_cast<Wide<T>>(a.eps));
}

template <class T, int kPacks, bool kAdd>
void backward_held_on(const RmsNormBackward& a, const NormRows& shape, int64_t partials) {
  constexpr int N = kPackOf<T>;
  backward_held<T, N, kPacks, kAdd>
      <<<static_cast<unsigned>(partials / shape.rows_per_block), shape.block(), 0, a.call.stream>>>(
          static_cast<const T*>(a.dy),
          static_cast<const T*>(a.x),
          static_cast<const T*>(a.weight),
          static_cast<const T*>(a.dsum),
          static_cast<const Wide<T>*>(a.rstd),
          static_cast<T*>(a.dx),
          static_cast<Wide<T>*>(a.partial),
          a.rows,
          static_cast<int>(a.dim / N));
}

template <class T>
void backward_any_on(const RmsNormBackward& a, int64_t partials) {
  const auto *dy = static_cast<const T*>(a.dy), *x = static_cast<const T*>(a.x);
  const auto* rstd = static_cast<const Wide<T>*>(a.rstd);
  const int64_t blocks = std::min<int64_t>(a.rows, resident_blocks(backward_any<T>, 256));
  backward_any<T><<<static_cast<unsigned>(blocks), 256, 0, a.call.stream>>>(dy,
                                                                            x,
                                                                            static_cast<const T*>(a.weight),
                                                                            static_cast<const T*>(a.dsum),
                                                                            rstd,
                                                                            static_cast<T*>(a.dx),
                                                                            a.rows,
                                                                            a.dim);
  check_launch("rms_norm backward");
  const dim3 grid(static_cast<unsigned>(divide_up(a.dim, 128)), static_cast<unsigned>(partials));
  backward_weight_any<T><<<grid, 128, 0, a.call.stream>>>(dy, x, rstd, static_cast<Wide<T>*>(a.partial), a.rows, a.dim);
}

template <class T>
void backward(const RmsNormBackward& a) {
  constexpr int N = kPackOf<T>;
  const NormRows shape = norm_rows(a.dim / N);
  const int64_t partials = norm_partials<T>(a.rows, a.dim);
  const bool held =
      sizeof(T) < 8 && shape.packs_per_thread > 0 && fits_packs<N, T>(a.dim, a.dy, a.x, a.weight, a.dsum, a.dx);
  if (!held) backward_any_on<T>(a, partials);
  if constexpr (sizeof(T) < 8) {
    if (held && shape.packs_per_thread == 2)
      a.dsum ? backward_held_on<T, 2, true>(a, shape, partials) : backward_held_on<T, 2, false>(a, shape, partials);
    if (held && shape.packs_per_thread == 4)
      a.dsum ? backward_held_on<T, 4, true>(a, shape, partials) : backward_held_on<T, 4, false>(a, shape, partials);
  }
  check_launch("rms_norm backward");
  if (!a.dweight) return;
  sum_columns<T>(a.partial, a.dweight, partials, a.dim, a.call.stream);
  check_launch("rms_norm weight gradient");
}

}  // namespace
}  // namespace cuda

void launch(const RmsNormForward& args) {
  if (args.rows == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) { cuda::forward<decltype(tag)>(args); });
  cuda::check_launch("rms_norm forward");
}

void launch(const RmsNormBackward& args) {
  cuda::dispatch(args.call.type, [&](auto tag) { cuda::backward<decltype(tag)>(args); });
}

int64_t norm_partials(CudaType type, int64_t rows, int64_t dim) {
  int64_t partials = 0;
  cuda::dispatch(type, [&](auto tag) { partials = cuda::norm_partials<decltype(tag)>(rows, dim); });
  return partials;
}

}  // namespace hanok
