#include "model/kernels/column_sums.cuh"
#include "model/kernels/norm_rows.cuh"
#include "model/kernels/packed.cuh"
#include "model/kernels/rms_norm_cuda.h"

namespace hanok {
namespace cuda {
namespace {

// A group of warps takes one row, P packs of N values a thread.
template <class T, int P, bool kAdd>
__global__ void __launch_bounds__(512, 2) forward_held(const T* x,
                                                       const T* added,
                                                       const T* __restrict__ weight,
                                                       T* sum,
                                                       T* y,
                                                       Wide<T>* rstd,
                                                       int64_t rows,
                                                       int packs,
                                                       Wide<T> per_value,
                                                       Wide<T> eps) {
  using A = Wide<T>;
  constexpr int N = kPackOf<T>;
  __shared__ A slots[1][kMostRowWarps];
  const int64_t row = Walk().first, dim = int64_t{packs} * N;
  if (row >= rows) return;  // whole warps, and whole blocks where they meet at a barrier
  uint4 v[P] = {};
  load_row(v, x + row * dim, packs);
  if constexpr (kAdd) {
    uint4 other[P] = {};
    load_row(other, added + row * dim, packs);
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const Pack<T, N> both = sum_of(unpacked<T>(v[p]), unpacked<T>(other[p]));
      const int at = threadIdx.x + p * blockDim.x;
      if (at < packs) store<N>(sum + row * dim + at * N, both);
      memcpy(&v[p], &both, sizeof both);
    }
  }
  A squares[1] = {};
#pragma unroll
  for (int p = 0; p < P; ++p) squares[0] += squares_of(unpacked<T>(v[p]));
  row_sums(squares, slots);
  const A scale = inverse_root(squares[0] * per_value + eps);
  if (threadIdx.x == 0) rstd[row] = scale;
  forget_unpacked(v);
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int at = threadIdx.x + p * blockDim.x;
    if (at < packs) store<N>(y + row * dim + at * N, scaled(unpacked<T>(v[p]), scale, load<N>(weight + at * N)));
  }
}

// Rows of any width and alignment: read twice.
template <class T>
__global__ void forward_any(
    const T* x, const T* added, const T* weight, T* sum, T* y, Wide<T>* rstd, int64_t rows, int64_t dim, Wide<T> eps) {
  using A = Wide<T>;
  __shared__ A slots[2][kMaxWarps];
  const A per_value = A(1) / static_cast<A>(dim);
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
    const A scale = reciprocal_root(block_sum(squares, slots[turn]) * per_value + eps);
    turn ^= 1;
    if (threadIdx.x == 0) rstd[row] = scale;
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x)
      y[row * dim + i] = narrow<T>(rounded<T>(widen(source[i]) * scale) * widen(weight[i]));
  }
}

// dx = rstd * (g - xhat * mean(g * xhat)) with g = dy * weight, xhat = x * rstd; dweight = sum over rows of dy * xhat.
template <class T, int P, bool kAdd>
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
  constexpr int N = kPackOf<T>;
  __shared__ A slots[2][1][kMostRowWarps];
  const int64_t dim = int64_t{packs} * N;
  const A per_value = A(1) / static_cast<A>(dim);
  const Walk walk;
  uint4 w[P] = {}, g[P], v[P], other[P] = {};
  uint4 next_g[P] = {}, next_v[P] = {}, next_other[P] = {};
  A next_scale = 0;
  const auto load_next = [&](int64_t row) {
    load_row(next_g, dy + row * dim, packs);
    load_row(next_v, x + row * dim, packs);
    if constexpr (kAdd) load_row(next_other, dsum + row * dim, packs);
    next_scale = rstd[row];
  };
  A dweight[P][N] = {};
  load_row(w, weight, packs);
  int turn = 0;
  if (walk.first < rows) load_next(walk.first);
  for (int64_t row = walk.first; row < rows; row += walk.step) {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      g[p] = next_g[p];
      v[p] = next_v[p];
      if constexpr (kAdd) other[p] = next_other[p];
    }
    const A scale = next_scale;
    if (row + walk.step < rows) load_next(row + walk.step);
    A dot[1] = {};
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const Pack<T, N> grads = unpacked<T>(g[p]), values = unpacked<T>(v[p]), weights = unpacked<T>(w[p]);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A product = widen(grads.v[i]) * (widen(values.v[i]) * scale);
        dot[0] += product * widen(weights.v[i]);
        dweight[p][i] += product;
      }
    }
    row_sums(dot, slots[turn]);
    const A mean = dot[0] * per_value;
    turn ^= 1;
    forget_unpacked(g);
    forget_unpacked(v);
    forget_unpacked(w);
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int at = threadIdx.x + p * blockDim.x;
      if (at >= packs) continue;
      const Pack<T, N> grads = unpacked<T>(g[p]), values = unpacked<T>(v[p]), weights = unpacked<T>(w[p]);
      const Pack<T, N> more = unpacked<T>(other[p]);
      const A shrink = scale * mean;
      Pack<T, N> out;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        A d = scale * (widen(grads.v[i]) * widen(weights.v[i]) - widen(values.v[i]) * shrink);
        if constexpr (kAdd) d += widen(more.v[i]);
        out.v[i] = narrow<T>(d);
      }
      store<N>(dx + row * dim + at * N, out);
    }
  }
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int at = threadIdx.x + p * blockDim.x;
    if (at < packs) store_sums(partial + walk.first * dim + at * N, dweight[p]);
  }
}

template <class T>
__global__ void backward_any(
    const T* dy, const T* x, const T* weight, const T* dsum, const Wide<T>* rstd, T* dx, int64_t rows, int64_t dim) {
  using A = Wide<T>;
  __shared__ A slots[2][kMaxWarps];
  const A per_value = A(1) / static_cast<A>(dim);
  int turn = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T *g = dy + row * dim, *v = x + row * dim;
    const A scale = rstd[row];
    A dot = 0;
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x)
      dot += widen(g[i]) * (widen(v[i]) * scale) * widen(weight[i]);
    const A mean = block_sum(dot, slots[turn]) * per_value;
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

template <class T, bool kAdd>
void forward_held_on(const RmsNormForward& a, const NormRows& shape) {
  const int64_t blocks = divide_up(a.rows, shape.rows_per_block);
  with_packs(shape.packs, [&](auto packs) {
    forward_held<T, packs, kAdd>
        <<<static_cast<unsigned>(blocks), shape.block(), 0, a.call.stream>>>(static_cast<const T*>(a.x),
                                                                             static_cast<const T*>(a.added),
                                                                             static_cast<const T*>(a.weight),
                                                                             static_cast<T*>(a.sum),
                                                                             static_cast<T*>(a.y),
                                                                             static_cast<Wide<T>*>(a.rstd),
                                                                             a.rows,
                                                                             static_cast<int>(a.dim / kPackOf<T>),
                                                                             Wide<T>(1) / static_cast<Wide<T>>(a.dim),
                                                                             static_cast<Wide<T>>(a.eps));
  });
}

template <class T>
void forward(const RmsNormForward& a) {
  constexpr int N = kPackOf<T>;
  const NormRows shape = forward_rows(a.dim / N);
  if constexpr (sizeof(T) < 8) {  // f64 is for tests
    if (shape.warps && fits_packs<N, T>(a.dim, a.x, a.added, a.weight, a.sum, a.y)) {
      return a.added ? forward_held_on<T, true>(a, shape) : forward_held_on<T, false>(a, shape);
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

template <class T, bool kAdd>
void backward_held_on(const RmsNormBackward& a, const NormRows& shape, int64_t partials) {
  auto* kernel = shape.packs == 1 ? backward_held<T, 1, kAdd> : backward_held<T, 2, kAdd>;
  kernel<<<static_cast<unsigned>(partials / shape.rows_per_block), shape.block(), 0, a.call.stream>>>(
      static_cast<const T*>(a.dy),
      static_cast<const T*>(a.x),
      static_cast<const T*>(a.weight),
      static_cast<const T*>(a.dsum),
      static_cast<const Wide<T>*>(a.rstd),
      static_cast<T*>(a.dx),
      static_cast<Wide<T>*>(a.partial),
      a.rows,
      static_cast<int>(a.dim / kPackOf<T>));
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
  const NormRows shape = backward_rows(a.dim / N);
  const int64_t partials = norm_partials<T>(a.rows, a.dim);
  const bool held = sizeof(T) < 8 && shape.warps && fits_packs<N, T>(a.dim, a.dy, a.x, a.weight, a.dsum, a.dx);
  if (!held && a.rows > 0) backward_any_on<T>(a, partials);
  if constexpr (sizeof(T) < 8) {
    if (held && a.rows > 0)
      a.dsum ? backward_held_on<T, true>(a, shape, partials) : backward_held_on<T, false>(a, shape, partials);
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
