#include "model/kernels/column_sums.cuh"
#include "model/kernels/layer_norm_cuda.h"
#include "model/kernels/norm_rows.cuh"

namespace hanok {
namespace cuda {
namespace {

// A group of warps takes one row, P packs of N values a thread.
template <class T, int P>
__global__ void __launch_bounds__(512, 2) forward_held(const T* x,
                                                       const T* __restrict__ weight,
                                                       const T* __restrict__ bias,
                                                       T* y,
                                                       Wide<T>* means,
                                                       Wide<T>* rstds,
                                                       int64_t rows,
                                                       int packs,
                                                       Wide<T> per_value,
                                                       Wide<T> eps) {
  using A = Wide<T>;
  constexpr int N = kPackOf<T>;
  __shared__ A slots[2][1][kMostRowWarps];
  const int64_t row = Walk().first, dim = int64_t{packs} * N;
  if (row >= rows) return;  // whole warps, and whole blocks where they meet at a barrier
  uint4 v[P] = {};
  load_row(v, x + row * dim, packs);
  A sum[1] = {}, squares[1] = {};
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const Pack<T, N> values = unpacked<T>(v[p]);
#pragma unroll
    for (int i = 0; i < N; ++i) sum[0] += widen(values.v[i]);
  }
  row_sums(sum, slots[0]);
  const A mean = sum[0] * per_value;
  forget_unpacked(v);
#pragma unroll
  for (int p = 0; p < P; ++p) {
    if (threadIdx.x + p * blockDim.x >= packs) continue;
    const Pack<T, N> values = unpacked<T>(v[p]);
#pragma unroll
    for (int i = 0; i < N; ++i) squares[0] += (widen(values.v[i]) - mean) * (widen(values.v[i]) - mean);
  }
  row_sums(squares, slots[1]);
  const A scale = inverse_root(squares[0] * per_value + eps);
  if (threadIdx.x == 0) {
    means[row] = mean;
    rstds[row] = scale;
  }
  forget_unpacked(v);
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int at = threadIdx.x + p * blockDim.x;
    if (at >= packs) continue;
    const Pack<T, N> values = unpacked<T>(v[p]), weights = load<N>(weight + at * N), biases = load<N>(bias + at * N);
    Pack<T, N> out;
#pragma unroll
    for (int i = 0; i < N; ++i)
      out.v[i] = narrow<T>((widen(values.v[i]) - mean) * scale * widen(weights.v[i]) + widen(biases.v[i]));
    store<N>(y + row * dim + at * N, out);
  }
}

// Rows of any width and alignment: read three times.
template <class T>
__global__ void forward_any(const T* x,
                            const T* weight,
                            const T* bias,
                            T* y,
                            Wide<T>* means,
                            Wide<T>* rstds,
                            int64_t rows,
                            int64_t dim,
                            Wide<T> eps) {
  using A = Wide<T>;
  __shared__ A slots[2][kMaxWarps];
  const A per_value = A(1) / static_cast<A>(dim);
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* v = x + row * dim;
    A sum = 0, squares = 0;
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) sum += widen(v[i]);
    const A mean = block_sum(sum, slots[0]) * per_value;
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) squares += (widen(v[i]) - mean) * (widen(v[i]) - mean);
    const A scale = reciprocal_root(block_sum(squares, slots[1]) * per_value + eps);
    if (threadIdx.x == 0) {
      means[row] = mean;
      rstds[row] = scale;
    }
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x)
      y[row * dim + i] = narrow<T>((widen(v[i]) - mean) * scale * widen(weight[i]) + widen(bias[i]));
  }
}

// dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) with g = dy * weight; sums over rows: dweight of dy * xhat, dbias
// of dy.
template <class T, int P>
__global__ void __launch_bounds__(512) backward_held(const T* dy,
                                                     const T* x,
                                                     const T* weight,
                                                     const Wide<T>* means,
                                                     const Wide<T>* rstds,
                                                     T* dx,
                                                     Wide<T>* partial,
                                                     int64_t rows,
                                                     int packs) {
  using A = Wide<T>;
  constexpr int N = kPackOf<T>;
  __shared__ A slots[2][2][kMostRowWarps];
  const int64_t dim = int64_t{packs} * N;
  const A per_value = A(1) / static_cast<A>(dim);
  const Walk walk;
  uint4 w[P] = {}, g[P], v[P], next_g[P] = {}, next_v[P] = {};
  A next_scale = 0, next_mean = 0;
  const auto load_next = [&](int64_t row) {
    load_row(next_g, dy + row * dim, packs);
    load_row(next_v, x + row * dim, packs);
    next_scale = rstds[row];
    next_mean = means[row];
  };
  A dweight[P][N] = {}, dbias[P][N] = {};
  load_row(w, weight, packs);
  int turn = 0;
  if (walk.first < rows) load_next(walk.first);
  for (int64_t row = walk.first; row < rows; row += walk.step) {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      g[p] = next_g[p];
      v[p] = next_v[p];
    }
    const A scale = next_scale, mean = next_mean;
    if (row + walk.step < rows) load_next(row + walk.step);
    A sums[2] = {};  // of g * xhat, of g
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const Pack<T, N> grads = unpacked<T>(g[p]), values = unpacked<T>(v[p]), weights = unpacked<T>(w[p]);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A d = widen(grads.v[i]), product = d * ((widen(values.v[i]) - mean) * scale);
        sums[0] += product * widen(weights.v[i]);
        sums[1] += d * widen(weights.v[i]);
        dweight[p][i] += product;
        dbias[p][i] += d;
      }
    }
    row_sums(sums, slots[turn]);
    turn ^= 1;
    const A dot = sums[0] * per_value, sum = sums[1] * per_value;
    forget_unpacked(g);
    forget_unpacked(v);
    forget_unpacked(w);
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int at = threadIdx.x + p * blockDim.x;
      if (at >= packs) continue;
      const Pack<T, N> grads = unpacked<T>(g[p]), values = unpacked<T>(v[p]), weights = unpacked<T>(w[p]);
      Pack<T, N> out;
#pragma unroll
      for (int i = 0; i < N; ++i)
        out.v[i] = narrow<T>(
            scale * (widen(grads.v[i]) * widen(weights.v[i]) - sum - (widen(values.v[i]) - mean) * scale * dot));
      store<N>(dx + row * dim + at * N, out);
    }
  }
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int at = threadIdx.x + p * blockDim.x;
    if (at >= packs) continue;
    store_sums(partial + walk.first * 2 * dim + at * N, dweight[p]);
    store_sums(partial + (walk.first * 2 + 1) * dim + at * N, dbias[p]);
  }
}

template <class T>
__global__ void backward_any(const T* dy,
                             const T* x,
                             const T* weight,
                             const Wide<T>* means,
                             const Wide<T>* rstds,
                             T* dx,
                             int64_t rows,
                             int64_t dim) {
  using A = Wide<T>;
  __shared__ A slots[2][kMaxWarps];
  const A per_value = A(1) / static_cast<A>(dim);
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T *g = dy + row * dim, *v = x + row * dim;
    const A scale = rstds[row], mean = means[row];
    A dot = 0, sum = 0;
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) {
      const A d = widen(g[i]) * widen(weight[i]);
      dot += d * ((widen(v[i]) - mean) * scale);
      sum += d;
    }
    dot = block_sum(dot, slots[0]) * per_value;
    sum = block_sum(sum, slots[1]) * per_value;
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x)
      dx[row * dim + i] =
          narrow<T>(scale * (widen(g[i]) * widen(weight[i]) - sum - (widen(v[i]) - mean) * scale * dot));
  }
}

// Row blockIdx.y of the partial sums takes every gridDim.y-th row.
template <class T>
__global__ void backward_params_any(
    const T* dy, const T* x, const Wide<T>* means, const Wide<T>* rstds, Wide<T>* partial, int64_t rows, int64_t dim) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= dim) return;
  Wide<T> dweight = 0, dbias = 0;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const Wide<T> d = widen(dy[row * dim + i]);
    dweight += d * ((widen(x[row * dim + i]) - means[row]) * rstds[row]);
    dbias += d;
  }
  partial[blockIdx.y * int64_t{2} * dim + i] = dweight;
  partial[(blockIdx.y * int64_t{2} + 1) * dim + i] = dbias;
}

template <class T>
void forward_held_on(const LayerNormForward& a, const NormRows& shape) {
  const int64_t blocks = divide_up(a.rows, shape.rows_per_block);
  with_packs(shape.packs, [&](auto packs) {
    forward_held<T, packs>
        <<<static_cast<unsigned>(blocks), shape.block(), 0, a.call.stream>>>(static_cast<const T*>(a.x),
                                                                             static_cast<const T*>(a.weight),
                                                                             static_cast<const T*>(a.bias),
                                                                             static_cast<T*>(a.y),
                                                                             static_cast<Wide<T>*>(a.mean),
                                                                             static_cast<Wide<T>*>(a.rstd),
                                                                             a.rows,
                                                                             static_cast<int>(a.dim / kPackOf<T>),
                                                                             Wide<T>(1) / static_cast<Wide<T>>(a.dim),
                                                                             static_cast<Wide<T>>(a.eps));
  });
}

template <class T>
void forward(const LayerNormForward& a) {
  constexpr int N = kPackOf<T>;
  const NormRows shape = forward_rows(a.dim / N);
  if constexpr (sizeof(T) < 8) {  // f64 is for tests
    if (shape.warps && fits_packs<N, T>(a.dim, a.x, a.weight, a.bias, a.y)) return forward_held_on<T>(a, shape);
  }
  const int64_t blocks = std::min<int64_t>(a.rows, resident_blocks(forward_any<T>, 256));
  forward_any<T><<<static_cast<unsigned>(blocks), 256, 0, a.call.stream>>>(static_cast<const T*>(a.x),
                                                                           static_cast<const T*>(a.weight),
                                                                           static_cast<const T*>(a.bias),
                                                                           static_cast<T*>(a.y),
                                                                           static_cast<Wide<T>*>(a.mean),
                                                                           static_cast<Wide<T>*>(a.rstd),
                                                                           a.rows,
                                                                           a.dim,
                                                                           static_cast<Wide<T>>(a.eps));
}

template <class T>
void backward_held_on(const LayerNormBackward& a, const NormRows& shape, int64_t partials) {
  auto* kernel = shape.packs == 1 ? backward_held<T, 1> : backward_held<T, 2>;
  kernel<<<static_cast<unsigned>(partials / shape.rows_per_block), shape.block(), 0, a.call.stream>>>(
      static_cast<const T*>(a.dy),
      static_cast<const T*>(a.x),
      static_cast<const T*>(a.weight),
      static_cast<const Wide<T>*>(a.mean),
      static_cast<const Wide<T>*>(a.rstd),
      static_cast<T*>(a.dx),
      static_cast<Wide<T>*>(a.partial),
      a.rows,
      static_cast<int>(a.dim / kPackOf<T>));
}

template <class T>
void backward_any_on(const LayerNormBackward& a, int64_t partials) {
  const auto *dy = static_cast<const T*>(a.dy), *x = static_cast<const T*>(a.x);
  const auto *mean = static_cast<const Wide<T>*>(a.mean), *rstd = static_cast<const Wide<T>*>(a.rstd);
  const int64_t blocks = std::min<int64_t>(a.rows, resident_blocks(backward_any<T>, 256));
  backward_any<T><<<static_cast<unsigned>(blocks), 256, 0, a.call.stream>>>(
      dy, x, static_cast<const T*>(a.weight), mean, rstd, static_cast<T*>(a.dx), a.rows, a.dim);
  check_launch("layer_norm backward");
  const dim3 grid(static_cast<unsigned>(divide_up(a.dim, 128)), static_cast<unsigned>(partials));
  backward_params_any<T>
      <<<grid, 128, 0, a.call.stream>>>(dy, x, mean, rstd, static_cast<Wide<T>*>(a.partial), a.rows, a.dim);
}

template <class T>
void backward(const LayerNormBackward& a) {
  constexpr int N = kPackOf<T>;
  const NormRows shape = backward_rows(a.dim / N);
  const int64_t partials = norm_partials<T>(a.rows, a.dim);
  const bool held = sizeof(T) < 8 && shape.warps && fits_packs<N, T>(a.dim, a.dy, a.x, a.weight, a.dx);
  if (!held && a.rows > 0) backward_any_on<T>(a, partials);
  if constexpr (sizeof(T) < 8) {
    if (held && a.rows > 0) backward_held_on<T>(a, shape, partials);
  }
  check_launch("layer_norm backward");
  sum_columns<T>(a.partial, a.dparams, partials, 2 * a.dim, a.call.stream);
  check_launch("layer_norm weight gradient");
}

}  // namespace
}  // namespace cuda

void launch(const LayerNormForward& args) {
  if (args.rows == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) { cuda::forward<decltype(tag)>(args); });
  cuda::check_launch("layer_norm forward");
}

void launch(const LayerNormBackward& args) {
  cuda::dispatch(args.call.type, [&](auto tag) { cuda::backward<decltype(tag)>(args); });
}

}  // namespace hanok
