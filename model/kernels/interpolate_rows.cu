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

constexpr int kTaps = 4, kBlockRows = 16, kAtOnce = 2;

// Four taps: bilinear. A block takes neighbouring rows, whose taps are mostly the same rows of the table and then still
// lie in its cache; it fetches their numbers once, and all that a thread reads of two rows before it adds.
template <class T, int N>
__global__ void __launch_bounds__(256) forward_bilinear(
    const T* table, const int64_t* index, const Wide<T>* weight, T* y, int64_t rows, int packs, unsigned tiles) {
  using A = Wide<T>;
  __shared__ int64_t starts[kBlockRows * kTaps];
  __shared__ A shares[kBlockRows * kTaps];
  const unsigned group = blockIdx.x / tiles;
  const int at = (blockIdx.x - group * tiles) * blockDim.x + threadIdx.x;
  const int64_t first = group * int64_t{kBlockRows}, width = int64_t{packs} * N;
  const int count = static_cast<int>(min(int64_t{kBlockRows}, rows - first));
  for (int k = threadIdx.x; k < kBlockRows * kTaps; k += blockDim.x) {
    const bool inside = k < count * kTaps;
    starts[k] = inside ? index[first * kTaps + k] * width : 0;
    shares[k] = inside ? weight[first * kTaps + k] : A(0);
  }
  __syncthreads();
  if (at >= packs) return;
  for (int row = 0; row < count; row += kAtOnce) {
    Pack<T, N> v[kAtOnce][kTaps];
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r)
#pragma unroll
      for (int k = 0; k < kTaps; ++k) v[r][k] = load<N>(table + starts[(row + r) * kTaps + k] + at * N);
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      if (row + r >= count) continue;
      A sum[N] = {};
#pragma unroll
      for (int k = 0; k < kTaps; ++k)
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] += shares[(row + r) * kTaps + k] * widen(v[r][k].v[i]);
      Pack<T, N> out;
#pragma unroll
      for (int i = 0; i < N; ++i) out.v[i] = narrow<T>(sum[i]);
      store<N>(y + (first + row + r) * width + at * N, out);
    }
  }
}

template <class T, int N>
void forward_on(const InterpolateRowsForward& a) {
  const auto* table = static_cast<const T*>(a.table);
  const auto* weight = static_cast<const Wide<T>*>(a.weight);
  const int64_t packs = a.width / N;
  if (a.taps == kTaps) {
    const int64_t tiles = divide_up(packs, 256), threads = divide_up(divide_up(packs, tiles), 32) * 32;
    forward_bilinear<T, N><<<static_cast<unsigned>(divide_up(a.rows, kBlockRows) * tiles),
                             static_cast<unsigned>(threads),
                             0,
                             a.call.stream>>>(
        table, a.index, weight, static_cast<T*>(a.y), a.rows, static_cast<int>(packs), static_cast<unsigned>(tiles));
    return;
  }
  const Tiles tiles = tiles_of(a.rows, packs);
  forward<T, N><<<tiles.grid, tiles.block, 0, a.call.stream>>>(
      table, a.index, weight, static_cast<T*>(a.y), a.rows, a.taps, packs);
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
