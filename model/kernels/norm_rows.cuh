// How the kernels of rms_norm and layer_norm lay threads over rows.
#pragma once

#include "base/cuda/device.cuh"

namespace hanok::cuda {

constexpr int kPacks = 2;  // of 16 bytes, that a thread holds of a row

/// A row of up to 16 KiB is held in registers, so that it is read once.
/// Rows of one warp need no barrier: a block then takes eight of them at a time.
struct NormRows {
  bool held = false;
  int warps = 16, rows_per_block = 1;
  dim3 block() const { return dim3(static_cast<unsigned>(32 * warps), static_cast<unsigned>(rows_per_block)); }
  int threads() const { return 32 * warps * rows_per_block; }
};

inline NormRows norm_rows(int64_t packs) {
  if (packs > 1024) return {};
  const int warps = static_cast<int>(divide_up(packs, 64));
  return {true, warps, warps == 1 ? 8 : 1};
}

/// Rows of partial sums that a backward leaves: its blocks loop over rows, as many at once as keep the memory busy and
/// no more, because every one of them writes a row.
template <class T>
int64_t norm_partials(int64_t rows, int64_t dim) {
  const NormRows shape = norm_rows(divide_up(dim, kPackOf<T>));
  const int64_t blocks = int64_t{num_multiprocessors()} * std::max(1, 512 / shape.threads());
  return std::min(blocks, divide_up(rows, shape.rows_per_block)) * shape.rows_per_block;
}

/// A thread's packs of a row, as they lie in memory: 16-bit values would take a register each once they are apart. What
/// lies behind the row's end is left as it was.
template <class T>
__device__ inline void load_row(uint4 (&held)[kPacks], const T* row, int packs) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
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
__device__ inline void forget_unpacked(uint4 (&held)[kPacks]) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p)
    asm volatile("" : "+r"(held[p].x), "+r"(held[p].y), "+r"(held[p].z), "+r"(held[p].w));
}

/// Rows that a block, or a row of its threads, walks through. The next row is loaded before this one is worked on, so
/// that the memory does not wait for the sums.
struct Walk {
  int64_t first = blockIdx.x * int64_t{blockDim.y} + threadIdx.y, step = gridDim.x * int64_t{blockDim.y};
};

}  // namespace hanok::cuda
