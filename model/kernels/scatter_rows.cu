#include "base/cuda/device.cuh"
#include "model/kernels/scatter_rows_cuda.h"

namespace hanok {
namespace cuda {
namespace {

__global__ void invert_index(const int64_t* index, int32_t* source, int64_t count, int64_t rows, int64_t first) {
  const int64_t m = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (m >= count) return;
  const int64_t t = index[m] - first;
  if (t >= 0 && t < rows) source[t] = static_cast<int32_t>(m);
}

template <class T, int N, bool kAdd>
__global__ void __launch_bounds__(256)
    scatter(const T* x, const T* rows, const int32_t* source, T* y, int64_t num_rows, int64_t packs) {
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, width = packs * N;
  if (at >= packs) return;
  for (int64_t t = blockIdx.y * int64_t{blockDim.y} + threadIdx.y; t < num_rows; t += gridDim.y * int64_t{blockDim.y}) {
    const int64_t m = source[t];
    Pack<T, N> v, other;
    if (kAdd || m < 0) v = load<N>(x + t * width + at * N);
    if (m >= 0) {
      if (rows) {
        other = load<N>(rows + m * width + at * N);
      } else {
        for (int i = 0; i < N; ++i) other.v[i] = narrow<T>(0);
      }
#pragma unroll
      for (int i = 0; i < N; ++i) v.v[i] = kAdd ? narrow<T>(widen(v.v[i]) + widen(other.v[i])) : other.v[i];
    }
    store<N>(y + t * width + at * N, v);
  }
}

template <class T, int N>
void scatter_on(const ScatterRows& a) {
  const Tiles tiles = tiles_of(a.num_rows, a.width / N);
  const auto run = [&](auto* kernel) {
    kernel<<<tiles.grid, tiles.block, 0, a.call.stream>>>(static_cast<const T*>(a.x),
                                                          static_cast<const T*>(a.rows),
                                                          a.source,
                                                          static_cast<T*>(a.y),
                                                          a.num_rows,
                                                          a.width / N);
  };
  a.add ? run(scatter<T, N, true>) : run(scatter<T, N, false>);
}

}  // namespace
}  // namespace cuda

void launch(const InvertIndex& a) {
  if (a.rows > 0) cudaMemsetAsync(a.source, 0xff, static_cast<size_t>(a.rows) * sizeof(int32_t), a.call.stream);
  if (a.count > 0)
    cuda::invert_index<<<static_cast<unsigned>(cuda::divide_up(a.count, 256)), 256, 0, a.call.stream>>>(
        a.index, a.source, a.count, a.rows, a.first);
  cuda::check_launch("invert_index");
}

void launch(const ScatterRows& args) {
  if (args.num_rows == 0 || args.width == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = cuda::kPackOf<T>;
    cuda::fits_packs<N, T>(args.width, args.x, args.rows, args.y) ? cuda::scatter_on<T, N>(args)
                                                                  : cuda::scatter_on<T, 1>(args);
  });
  cuda::check_launch("scatter_rows");
}

}  // namespace hanok
