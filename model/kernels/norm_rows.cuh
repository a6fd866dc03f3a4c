// How the kernels of rms_norm and layer_norm lay threads over rows. The numbers won on an H200 against others, from 1
// to 16 warps a row and 512 to 1024 threads a multiprocessor.
#pragma once

#include <type_traits>

#include "model/kernels/packed.cuh"

namespace hanok::cuda {

/// Rows that threads hold in registers, so that they are read once: `warps` warps a row, `packs` packs of 16 bytes a
/// thread. Rows of one warp need no barrier: a block then takes several of them.
struct NormRows {
  int warps = 0, packs = 0, rows_per_block = 1;
  dim3 block() const { return dim3(static_cast<unsigned>(32 * warps), static_cast<unsigned>(rows_per_block)); }
  int threads() const { return 32 * warps * rows_per_block; }
};

constexpr int kMostRowWarps = 16;

/// As few warps as hold a row of `packs` packs with at most `most` a thread; none where those are too many.
inline NormRows rows_held(int64_t packs, int64_t most, int rows_of_one_warp) {
  const int64_t warps = std::max<int64_t>(1, divide_up(packs, most * 32)), each = divide_up(packs, warps * 32);
  if (warps > kMostRowWarps) return {};
  return {static_cast<int>(warps), static_cast<int>(each), warps == 1 ? rows_of_one_warp : 1};
}

/// A forward takes a row a group of warps and ends: what hides the memory's latency is many groups, each with all of
/// its row under way at once. Five packs a thread leave the registers for that.
constexpr int kForwardPacks = 5;
inline NormRows forward_rows(int64_t packs) {
  return rows_held(packs, kForwardPacks, 4);
}

/// A backward keeps the sums of its columns in registers and walks over rows, the next of which is loaded before this
/// one is worked on. One pack a thread where a few warps are then enough.
constexpr int kFewWarps = 4;
inline NormRows backward_rows(int64_t packs) {
  return rows_held(packs, packs > kFewWarps * 32 ? 2 : 1, 8);
}

/// f(the packs a thread holds, as a constant): forward_held is compiled for these.
template <class F>
void with_packs(int packs, const F& f) {
  switch (packs) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    default: return f(std::integral_constant<int, kForwardPacks>{});
  }
}

constexpr int kBusyPacks = 1024;  // of a row under way on a multiprocessor: enough to keep the memory busy

/// Rows of partial sums that a backward leaves: its blocks loop over rows, as many at once as keep the memory busy and
/// no more, because every one of them writes a row.
template <class T>
int64_t norm_partials(int64_t rows, int64_t dim) {
  const NormRows shape = backward_rows(divide_up(dim, kPackOf<T>));
  if (shape.warps == 0) return std::min<int64_t>(num_multiprocessors(), rows);
  const int at_once = kBusyPacks / (shape.packs * shape.threads());
  const int64_t blocks = int64_t{num_multiprocessors()} * std::max(1, at_once);
  return std::min(blocks, divide_up(rows, shape.rows_per_block)) * shape.rows_per_block;
}

/// A thread's packs of a row, as they lie in memory: 16-bit values would take a register each once they are apart. What
/// lies behind the row's end is left as it was.
template <int P, class T>
__device__ inline void load_row(uint4 (&held)[P], const T* row, int packs) {
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int at = threadIdx.x + p * blockDim.x;
    if (at < packs) held[p] = reinterpret_cast<const uint4*>(row)[at];
  }
}

template <class T>
__device__ inline Pack<T, kPackOf<T>> unpacked(const uint4& held) {
  Pack<T, kPackOf<T>> pack;
  memcpy(&pack, &held, sizeof held);
  return pack;
}

/// The compiler must take the values apart again: kept from their last use, they would fill the registers.
template <int P>
__device__ inline void forget_unpacked(uint4 (&held)[P]) {
#pragma unroll
  for (int p = 0; p < P; ++p) asm volatile("" : "+r"(held[p].x), "+r"(held[p].y), "+r"(held[p].z), "+r"(held[p].w));
}

/// K sums over the threads of a row, the same in each of them, with one barrier where the row has several warps. Calls
/// that follow each other must take turns between two arrays of slots.
template <int K, class A>
__device__ inline void row_sums(A (&sums)[K], A (&slots)[K][kMostRowWarps]) {
#pragma unroll
  for (int k = 0; k < K; ++k) sums[k] = lane_sum(sums[k]);
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
  if (warps == 1) return;
  if (lane == 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) slots[k][threadIdx.x / 32] = sums[k];
  }
  __syncthreads();
  const int place = lane % kMostRowWarps;
#pragma unroll
  for (int k = 0; k < K; ++k) sums[k] = lane_sum(place < warps ? slots[k][place] : A(0), kMostRowWarps);
}

/// Rows that a block, or a row of its threads, walks through.
struct Walk {
  int64_t first = blockIdx.x * int64_t{blockDim.y} + threadIdx.y, step = gridDim.x * int64_t{blockDim.y};
};

}  // namespace hanok::cuda
