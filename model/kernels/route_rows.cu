#include "base/cuda/device.cuh"
#include "model/kernels/route_rows_cuda.h"

namespace hanok {
namespace cuda {
namespace {

// Slots are below 2^31: a division in 32 bits takes a fraction of the time.
__device__ inline int64_t row_of(int64_t slot, int64_t choices) {
  return static_cast<unsigned>(slot) / static_cast<unsigned>(choices);
}

template <class T, int N>
__global__ void __launch_bounds__(256) spread(const T* x, const T* weight, T* y, SpreadRows a, int64_t packs) {
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (at >= packs) return;
  const int64_t step = gridDim.y * int64_t{blockDim.y};
  for (int64_t n = blockIdx.y * int64_t{blockDim.y} + threadIdx.y; n < a.num_rows; n += step) {
    const int64_t slot = a.slot[n];
    Pack<T, N> v = load<N>(x + row_of(slot, a.choices) * a.x_step + at * N);
    if (weight) {
      const Wide<T> factor = widen(weight[slot]);
#pragma unroll
      for (int i = 0; i < N; ++i) v.v[i] = narrow<T>(factor * widen(v.v[i]));
    }
    store<N>(y + n * a.y_step + at * N, v);
  }
}

template <class T, int N>
__global__ void __launch_bounds__(256) collect(const T* x, const T* weight, T* y, CollectRows a, int64_t packs) {
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (at >= packs) return;
  const int64_t step = gridDim.y * int64_t{blockDim.y};
  for (int64_t t = blockIdx.y * int64_t{blockDim.y} + threadIdx.y; t < a.num_rows; t += step) {
    Wide<T> sum[N] = {};
    for (int64_t k = 0; k < a.choices; ++k) {
      const int64_t n = a.place[t * a.choices + k];
      if (n < 0) continue;
      const Wide<T> factor = weight ? widen(weight[t * a.choices + k]) : Wide<T>(1);
      const Pack<T, N> v = load<N>(x + n * a.x_step + at * N);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += factor * widen(v.v[i]);
    }
    Pack<T, N> out;
#pragma unroll
    for (int i = 0; i < N; ++i) out.v[i] = narrow<T>(sum[i]);
    store<N>(y + t * a.y_step + at * N, out);
  }
}

/// A warp a pair of rows.
template <class T>
__global__ void __launch_bounds__(256)
    products(const T* x, const T* dy, const int64_t* place, T* dweight, int64_t pairs, int64_t choices, int64_t width) {
  const int64_t step = gridDim.x * int64_t{blockDim.y};
  for (int64_t j = blockIdx.x * int64_t{blockDim.y} + threadIdx.y; j < pairs; j += step) {
    const int64_t n = place[j];
    Wide<T> sum = 0;
    if (n >= 0)
      for (int64_t i = threadIdx.x; i < width; i += 32)
        sum += widen(dy[j / choices * width + i]) * widen(x[n * width + i]);
    sum = lane_sum(sum);
    if (threadIdx.x == 0) dweight[j] = narrow<T>(sum);
  }
}

/// Rows of both sides can be moved in packs of N.
template <int N, class T, class Args>
bool rows_fit_packs(const Args& a) {
  return fits_packs<N, T>(a.width, a.x, a.y) && a.x_step % N == 0 && a.y_step % N == 0;
}

template <class T, int N>
void spread_on(const SpreadRows& a) {
  const Tiles tiles = tiles_of(a.num_rows, a.width / N);
  spread<T, N><<<tiles.grid, tiles.block, 0, a.call.stream>>>(
      static_cast<const T*>(a.x), static_cast<const T*>(a.weight), static_cast<T*>(a.y), a, a.width / N);
}

template <class T, int N>
void collect_on(const CollectRows& a) {
  const Tiles tiles = tiles_of(a.num_rows, a.width / N);
  collect<T, N><<<tiles.grid, tiles.block, 0, a.call.stream>>>(
      static_cast<const T*>(a.x), static_cast<const T*>(a.weight), static_cast<T*>(a.y), a, a.width / N);
}

}  // namespace
}  // namespace cuda

void launch(const SpreadRows& args) {
  if (args.num_rows == 0 || args.width == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = cuda::kPackOf<T>;
    cuda::rows_fit_packs<N, T>(args) ? cuda::spread_on<T, N>(args) : cuda::spread_on<T, 1>(args);
  });
  cuda::check_launch("gather_rows");
}

void launch(const CollectRows& args) {
  if (args.num_rows == 0 || args.width == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = cuda::kPackOf<T>;
    cuda::rows_fit_packs<N, T>(args) ? cuda::collect_on<T, N>(args) : cuda::collect_on<T, 1>(args);
  });
  cuda::check_launch("combine_rows");
}

void launch(const WeightOfRows& args) {
  const int64_t pairs = args.num_rows * args.choices;
  if (pairs == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) {
    using T = decltype(tag);
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(cuda::divide_up(pairs, 8), 1 << 16));
    cuda::products<T><<<blocks, dim3(32, 8), 0, args.call.stream>>>(static_cast<const T*>(args.x),
                                                                    static_cast<const T*>(args.dy),
                                                                    args.place,
                                                                    static_cast<T*>(args.dweight),
                                                                    pairs,
                                                                    args.choices,
                                                                    args.width);
  });
  cuda::check_launch("combine_rows: weights");
}

}  // namespace hanok
