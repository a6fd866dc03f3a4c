#include "base/cuda/device.cuh"
#include "model/kernels/interpolate_rows_cuda.h"

namespace hanok {
namespace cuda {
namespace {

template <class T, int N>
__global__ void __launch_bounds__(256) forward(
    const T* table, const int64_t* index, const Wide<T>* weight, T* y, int64_t rows, int64_t taps, int64_t packs) {
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, width = packs * N;
  if (at >= packs) return;
  for (int64_t row = blockIdx.y * int64_t{blockDim.y} + threadIdx.y; row < rows;
       row += gridDim.y * int64_t{blockDim.y}) {
    Wide<T> sum[N] = {};
#pragma unroll 4
    for (int64_t k = row * taps; k < (row + 1) * taps; ++k) {
      const Pack<T, N> v = load<N>(table + index[k] * width + at * N);
      const Wide<T> share = weight[k];
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += share * widen(v.v[i]);
    }
    Pack<T, N> out;
#pragma unroll
    for (int i = 0; i < N; ++i) out.v[i] = narrow<T>(sum[i]);
    store<N>(y + row * width + at * N, out);
  }
}

template <class T, int N>
void forward_on(const InterpolateRowsForward& a) {
  const Tiles tiles = tiles_of(a.rows, a.width / N);
  forward<T, N><<<tiles.grid, tiles.block, 0, a.call.stream>>>(static_cast<const T*>(a.table),
                                                               a.index,
                                                               static_cast<const Wide<T>*>(a.weight),
                                                               static_cast<T*>(a.y),
                                                               a.rows,
                                                               a.taps,
                                                               a.width / N);
}

}  // namespace
}  // namespace cuda

void launch(const InterpolateRowsForward& args) {
  if (args.rows == 0 || args.width == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = cuda::kPackOf<T>;
    cuda::fits_packs<N, T>(args.width, args.table, args.y) ? cuda::forward_on<T, N>(args)
                                                           : cuda::forward_on<T, 1>(args);
  });
  cuda::check_launch("interpolate_rows forward");
}

}  // namespace hanok
