#include "base/cuda/device.cuh"
#include "parallel/squared_norm_cuda.h"

namespace hanok {
namespace cuda {
namespace {

constexpr int kThreads = 512, kPacksAtOnce = 4;
constexpr int kStretchesAtOnce = 160;  // what fits into the arguments of a launch

/// Stretches of one launch. Chunks are counted through all of them: first_chunk[s] is the number before stretch s.
struct Stretches {
  int64_t begin[kStretchesAtOnce], size[kStretchesAtOnce];
  int first_chunk[kStretchesAtOnce + 1];
  int count;
};

template <class T>
__device__ inline double square(T x) {
  const double wide = widen(x);
  return wide * wide;
}

/// Adds to partial[blockIdx.x], which belongs to this block in every launch.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_squares(const T* x, double* partial, bool aligned, __grid_constant__ const Stretches stretches) {
  constexpr int N = kPackOf<T>;
  constexpr int64_t kChunk = int64_t{kThreads} * N * kPacksAtOnce;
  __shared__ double slots[kMaxWarps];
  double sum = 0;
  for (int chunk = blockIdx.x; chunk < stretches.first_chunk[stretches.count]; chunk += gridDim.x) {
    int stretch = 0, last = stretches.count - 1;
    while (stretch < last) {
      const int middle = (stretch + last + 1) / 2;
      if (stretches.first_chunk[middle] <= chunk)
        stretch = middle;
      else
        last = middle - 1;
    }
    const int64_t begin = stretches.begin[stretch] + (chunk - stretches.first_chunk[stretch]) * kChunk;
    const int64_t end = min(begin + kChunk, stretches.begin[stretch] + stretches.size[stretch]);
    if (aligned && begin % N == 0 && end - begin == kChunk) {
      Pack<T, N> v[kPacksAtOnce];
#pragma unroll
      for (int p = 0; p < kPacksAtOnce; ++p) v[p] = load<N>(x + begin + (p * kThreads + threadIdx.x) * N);
#pragma unroll
      for (int p = 0; p < kPacksAtOnce; ++p) {
        double four = 0;
#pragma unroll
        for (int i = 0; i < N; ++i) four += square(v[p].v[i]);
        sum += four;
      }
    } else {
      for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) sum += square(x[i]);
    }
  }
  sum = block_sum(sum, slots);
  if (threadIdx.x == 0) partial[blockIdx.x] += sum;
}

__global__ void __launch_bounds__(kThreads) add_partials(const double* partial, double* sum, int64_t count) {
  __shared__ double slots[kMaxWarps];
  double own = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) own += partial[i];
  own = block_sum(own, slots);
  if (threadIdx.x == 0) *sum = own;
}

template <class T>
void add_all(const SquaredNorm& a) {
  constexpr int64_t kChunk = int64_t{kThreads} * kPackOf<T> * kPacksAtOnce;
  for (int64_t first = 0; first < a.num_stretches; first += kStretchesAtOnce) {
    Stretches stretches{};
    stretches.count = static_cast<int>(std::min<int64_t>(kStretchesAtOnce, a.num_stretches - first));
    for (int i = 0; i < stretches.count; ++i) {
      stretches.begin[i] = a.begin[first + i];
      stretches.size[i] = a.size[first + i];
      stretches.first_chunk[i + 1] = stretches.first_chunk[i] + static_cast<int>(divide_up(a.size[first + i], kChunk));
    }
    add_squares<T><<<static_cast<unsigned>(squared_norm_partials()), kThreads, 0, a.call.stream>>>(
        static_cast<const T*>(a.x), a.partial, is_aligned(a.x), stretches);
    check_launch("squared_norm");
  }
}

}  // namespace
}  // namespace cuda

void launch(const SquaredNorm& a) {
  const int64_t partials = squared_norm_partials();
  cudaMemsetAsync(a.partial, 0, static_cast<size_t>(partials) * sizeof(double), a.call.stream);
  cuda::dispatch(a.call.type, [&](auto tag) { cuda::add_all<decltype(tag)>(a); });
  cuda::add_partials<<<1, cuda::kThreads, 0, a.call.stream>>>(a.partial, a.sum, partials);
  cuda::check_launch("squared_norm sum");
}

int64_t squared_norm_partials() {
  return int64_t{cuda::num_multiprocessors()} * 2;
}

}  // namespace hanok
