#include "base/cuda/device.cuh"
#include "model/kernels/order_rows_cuda.h"

namespace hanok {
namespace cuda {
namespace {

constexpr int64_t kSharedInts = 48 * 1024 / sizeof(int);
constexpr int kScanThreads = 1024;

/// Warps of a block, each of which sorts 32 neighbouring slots: as many as have room for their counts.
int warps_of(int64_t experts) {
  return static_cast<int>(std::clamp<int64_t>(kSharedInts / (experts + 1), 1, 32));
}

// Slots that stand nowhere count as one more expert, behind all others.
//
// A warp takes 32 slots and counts equal keys among them; counts of its warps lie in shared memory, [warps, experts +
// 1], and become the number of equal keys in the warps before. kPlace: `counts` holds those of all blocks and `ends` is
// known, and slots are written; else the block's counts are.
template <bool kPlace>
__global__ void __launch_bounds__(1024) order_slots(OrderByExpert a) {
  extern __shared__ int in_warp[];
  const int64_t keys = a.experts + 1;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int64_t i = threadIdx.x; i < keys * warps; i += blockDim.x) in_warp[i] = 0;
  __syncthreads();
  const int64_t slot = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  const bool is_slot = slot < a.slots;
  int64_t key = -1;
  if (is_slot) key = a.index[slot] < 0 || (a.row && a.row[slot / a.choices] < 0) ? a.experts : a.index[slot];
  const unsigned equal = __match_any_sync(~0u, static_cast<int>(key));
  const int before = __popc(equal & ((1u << lane) - 1));
  if (is_slot && before == 0) in_warp[warp * keys + key] = __popc(equal);
  __syncthreads();
  for (int64_t k = threadIdx.x; k < keys; k += blockDim.x) {
    int sum = 0;
    if (kPlace) {
      if (k > 0) sum = a.ends[k - 1];
#pragma unroll 8
      for (int64_t b = 0; b < blockIdx.x; ++b) sum += a.counts[b * keys + k];
    }
    for (int w = 0; w < warps; ++w) {
      const int count = in_warp[w * keys + k];
      in_warp[w * keys + k] = sum;
      sum += count;
    }
    if (!kPlace) a.counts[blockIdx.x * keys + k] = sum;
  }
  if (!kPlace) return;
  __syncthreads();
  if (!is_slot) return;
  const int64_t place = in_warp[warp * keys + key] + before;
  a.slot[place] = slot;
  a.place[slot] = key < a.experts ? place : -1;
}

// Counts of the blocks -> where the rows of an expert end. One block; a thread an expert.
__global__ void __launch_bounds__(kScanThreads) sum_counts(OrderByExpert a, int64_t blocks) {
  __shared__ int sums[kScanThreads];
  int carried = 0;
  for (int64_t base = 0; base < a.experts; base += kScanThreads) {
    const int64_t key = base + threadIdx.x;
    int total = 0;
    if (key < a.experts) {
#pragma unroll 8
      for (int64_t b = 0; b < blocks; ++b) total += a.counts[b * (a.experts + 1) + key];
    }
    sums[threadIdx.x] = total;
    __syncthreads();
    for (int step = 1; step < kScanThreads; step *= 2) {
      const int other = static_cast<int>(threadIdx.x) >= step ? sums[threadIdx.x - step] : 0;
      __syncthreads();
      sums[threadIdx.x] += other;
      __syncthreads();
    }
    if (key < a.experts) a.ends[key] = carried + sums[threadIdx.x];
    carried += sums[kScanThreads - 1];
    __syncthreads();
  }
}

}  // namespace
}  // namespace cuda

int64_t order_blocks(int64_t slots, int64_t experts) {
  return cuda::divide_up(slots, 32 * cuda::warps_of(experts));
}

void launch(const OrderByExpert& a) {
  const auto blocks = static_cast<unsigned>(order_blocks(a.slots, a.experts));
  const int warps = cuda::warps_of(a.experts);
  const size_t shared = warps * (a.experts + 1) * sizeof(int);
  if (blocks > 0) cuda::order_slots<false><<<blocks, 32 * warps, shared, a.stream>>>(a);
  cuda::sum_counts<<<1, cuda::kScanThreads, 0, a.stream>>>(a, blocks);
  if (blocks > 0) cuda::order_slots<true><<<blocks, 32 * warps, shared, a.stream>>>(a);
  cuda::check_launch("order_by_expert");
}

}  // namespace hanok
