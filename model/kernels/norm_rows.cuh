// How the kernels of rms_norm and layer_norm lay threads over rows.
#pragma once

#include <type_traits>

#include "model/kernels/packed.cuh"
#include "model/kernels/rms_norm_cuda.h"

namespace hanok::cuda {

/// Rows that threads hold in registers, so that they are read once: `warps` warps a row, `packs` packs of 16 bytes a
/// thread. Rows of one warp need no barrier: a block then takes several of them.
struct NormRows {
  int warps = 0, packs = 0, rows_per_block = 1;
  dim3 block() const { return dim3(static_cast<unsigned>(32 * warps), static_cast<unsigned>(rows_per_block)); }
  int threads() const { return 32 * warps * rows_per_block; }
};

constexpr int kMostRowWarps = 16;

/// A forward takes a row a group of warps and ends: what hides the memory's latency is many groups, each with all of
/// its row under way at once. Five packs a thread leave the registers for that.
inline NormRows forward_rows(int64_t packs, const NormLayout& layout) {
  const int64_t warps = layout.warps ? layout.warps : std::max<int64_t>(1, divide_up(packs, 5 * 32)),
                each = divide_up(packs, 32 * warps);
  if (warps > kMostRowWarps || each > 8) return {};
  return {static_cast<int>(warps), static_cast<int>(each), warps == 1 ? 4 : 1};
}

/// A backward keeps the sums of its columns in registers and walks over rows, the next of which is loaded before this
/// one is worked on. One pack a thread where a few warps are then enough.
inline NormRows backward_rows(int64_t packs, const NormLayout& layout) {
  const int64_t warps = layout.warps ? layout.warps : std::max<int64_t>(1, divide_up(packs, packs > 128 ? 64 : 32)),
                each = divide_up(packs, 32 * warps);
  if (warps > kMostRowWarps || each > 2) return {};
  return {static_cast<int>(warps), static_cast<int>(each), warps == 1 ? 8 : 1};
}

/// f(the packs a thread holds, as a constant): forward_held is compiled for these.
template <class F>
void with_packs(int packs, const F& f) {
  switch (packs) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 5: return f(std::integral_constant<int, 5>{});
    default: return f(std::integral_constant<int, 8>{});
  }
}

/// Rows of partial sums that a backward leaves: its blocks loop over rows, as many at once as keep the memory busy and
/// no more, because every one of them writes a row.
template <class T>
int64_t norm_partials(int64_t rows, int64_t dim, const NormLayout& layout) {
  const NormRows shape = backward_rows(divide_up(dim, kPackOf<T>), layout);
  if (shape.warps == 0) return std::min<int64_t>(num_multiprocessors(), rows);
  const int threads = layout.threads ? layout.threads : shape.packs == 1 ? 1024 : 512;
  const int64_t blocks = int64_t{num_multiprocessors()} * std::max(1, threads / shape.threads());
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
