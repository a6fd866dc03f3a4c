#include "base/cuda/device.cuh"
#include "model/kernels/sum_by_row_cuda.h"

namespace hanok {
namespace cuda {
namespace {

constexpr int kWarps = 8, kAtOnce = 4;
constexpr int kChunk = 32;  // sorted uses that one warp walks through

struct Uses {
  const int64_t *key, *use;
  int64_t count, taps, rows, first;
  __device__ bool is_here(int64_t which) const { return which >= first && which < first + rows; }
};

// A warp takes 32 packs of columns through the uses of one chunk. A key whose uses all lie in the chunk is done then.
// Of the others the chunk's sums go to `partial`: row 0 of its two for the key that came over from the chunk before,
// row 1 for the key that begins here and goes on.
template <class T, int N>
__global__ void __launch_bounds__(32 * kWarps)
    sum_chunks(Uses uses, const Wide<T>* weight, const T* dy, T* out, Wide<T>* partial, int64_t packs) {
  using A = Wide<T>;
  const int64_t chunk = blockIdx.x * int64_t{kWarps} + threadIdx.y, begin = chunk * kChunk;
  if (begin >= uses.count) return;
  const int count = static_cast<int>(min(int64_t{kChunk}, uses.count - begin)), lane = threadIdx.x;
  const int64_t at = blockIdx.y * int64_t{32} + lane, width = packs * N;
  const int64_t own_key = lane < count ? uses.key[begin + lane] : -1;
  const int64_t own_use = lane < count ? uses.use[begin + lane] : 0;
  const A own_share = weight && lane < count ? weight[own_use] : A(1);
  const bool came_over = begin > 0 && uses.key[begin - 1] == uses.key[begin];
  const bool goes_on = begin + count < uses.count && uses.key[begin + count] == uses.key[begin + count - 1];
  A sum[N] = {};
  bool is_first_key = true;
  for (int base = 0; base < count; base += kAtOnce) {
    Pack<T, N> v[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t row = __shfl_sync(~0u, own_use, (base + i) % kChunk) / uses.taps;
      if (base + i < count && at < packs) v[i] = load<N>(dy + row * width + at * N);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int place = base + i;
      const A share = __shfl_sync(~0u, own_share, place % kChunk);
      const int64_t key = __shfl_sync(~0u, own_key, place % kChunk);
      const int64_t next = __shfl_sync(~0u, own_key, (place + 1) % kChunk);
      if (place >= count) continue;
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] += share * widen(v[i].v[n]);
      const bool is_last = place + 1 == count;
      if (!is_last && next == key) continue;
      const bool from_before = is_first_key && came_over, into_next = is_last && goes_on;
      if (uses.is_here(key) && at < packs) {
        if (from_before || into_next) {
          A* row = partial + (chunk * 2 + (from_before ? 0 : 1)) * width + at * N;
#pragma unroll
          for (int n = 0; n < N; ++n) row[n] = sum[n];
        } else {
          Pack<T, N> total;
#pragma unroll
          for (int n = 0; n < N; ++n) total.v[n] = narrow<T>(sum[n]);
          store<N>(out + (key - uses.first) * width + at * N, total);
        }
      }
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] = 0;
      is_first_key = false;
    }
  }
}

// Adds up the key that begins in a chunk and goes on in the next ones.
template <class T, int N>
__global__ void __launch_bounds__(32 * kWarps) join_chunks(Uses uses, const Wide<T>* partial, T* out, int64_t packs) {
  using A = Wide<T>;
  const int64_t chunk = blockIdx.x * int64_t{kWarps} + threadIdx.y, begin = chunk * kChunk, end = begin + kChunk;
  if (end >= uses.count) return;
  const int64_t key = uses.key[end], width = packs * N, at = blockIdx.y * int64_t{32} + threadIdx.x;
  const bool begins_here = uses.key[end - 1] == key && (begin == 0 || uses.key[begin - 1] != key);
  if (!begins_here || !uses.is_here(key) || at >= packs) return;
  int64_t last = end, beyond = uses.count;  // the last use of the key: key[last] == key, key[beyond] is another
  while (beyond - last > 1) {
    const int64_t middle = (last + beyond) / 2;
    (uses.key[middle] == key ? last : beyond) = middle;
  }
  A sum[N];
  for (int n = 0; n < N; ++n) sum[n] = partial[(chunk * 2 + 1) * width + at * N + n];
#pragma unroll 8
  for (int64_t other = chunk + 1; other <= last / kChunk; ++other) {
    const A* row = partial + other * 2 * width + at * N;
#pragma unroll
    for (int n = 0; n < N; ++n) sum[n] += row[n];
  }
  Pack<T, N> total;
#pragma unroll
  for (int n = 0; n < N; ++n) total.v[n] = narrow<T>(sum[n]);
  store<N>(out + (key - uses.first) * width + at * N, total);
}

template <class T, int N>
void sum_on(const SumByRow& a) {
  const int64_t packs = a.width / N, chunks = divide_up(a.uses, kChunk);
  const Uses uses{a.key, a.use, a.uses, a.taps, a.rows, a.first};
  const dim3 grid(static_cast<unsigned>(divide_up(chunks, kWarps)), static_cast<unsigned>(divide_up(packs, 32)));
  auto* partial = static_cast<Wide<T>*>(a.partial);
  sum_chunks<T, N><<<grid, dim3(32, kWarps), 0, a.call.stream>>>(
      uses, static_cast<const Wide<T>*>(a.weight), static_cast<const T*>(a.dy), static_cast<T*>(a.out), partial, packs);
  check_launch("sum_by_row");
  if (chunks == 1) return;
  join_chunks<T, N><<<grid, dim3(32, kWarps), 0, a.call.stream>>>(uses, partial, static_cast<T*>(a.out), packs);
}

}  // namespace
}  // namespace cuda

void launch(const SumByRow& args) {
  if (args.uses == 0 || args.width == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = cuda::kPackOf<T>;
    cuda::fits_packs<N, T>(args.width, args.dy, args.out) ? cuda::sum_on<T, N>(args) : cuda::sum_on<T, 1>(args);
  });
  cuda::check_launch("sum_by_row of several chunks");
}

int64_t sum_by_row_partials(int64_t uses) {
  return 2 * cuda::divide_up(uses, cuda::kChunk);
}

}  // namespace hanok
