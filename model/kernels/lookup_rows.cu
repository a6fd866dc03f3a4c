#include "base/cuda/device.cuh"
#include "model/kernels/lookup_rows_cuda.h"

namespace hanok {
namespace cuda {
namespace {

template <class T, int N>
__global__ void __launch_bounds__(256)
    forward(const T* table, const int64_t* index, T* y, int64_t count, int64_t rows, int64_t packs, int64_t first) {
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, width = packs * N;
  if (at >= packs) return;
  for (int64_t t = blockIdx.y * int64_t{blockDim.y} + threadIdx.y; t < count; t += gridDim.y * int64_t{blockDim.y}) {
    const int64_t row = index[t] - first;
    Pack<T, N> v;
    if (row >= 0 && row < rows) {
      v = load<N>(table + row * width + at * N);
    } else {
      for (int i = 0; i < N; ++i) v.v[i] = narrow<T>(0);
    }
    store<N>(y + t * width + at * N, v);
  }
}

template <class T, int N>
void forward_on(const LookupRowsForward& a) {
  const Tiles tiles = tiles_of(a.count, a.width / N);
  forward<T, N><<<tiles.grid, tiles.block, 0, a.call.stream>>>(
      static_cast<const T*>(a.table), a.index, static_cast<T*>(a.y), a.count, a.rows, a.width / N, a.first);
}

}  // namespace
}  // namespace cuda

void launch(const LookupRowsForward& args) {
  if (args.count == 0 || args.width == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = cuda::kPackOf<T>;
    cuda::fits_packs<N, T>(args.width, args.table, args.y) ? cuda::forward_on<T, N>(args)
                                                           : cuda::forward_on<T, 1>(args);
  });
  cuda::check_launch("lookup_rows forward");
}

}  // namespace hanok
