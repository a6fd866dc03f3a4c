// How the kernels of rms_norm and layer_norm lay threads over rows.
#pragma once

#include "base/cuda/device.cuh"

namespace hanok::cuda {

/// A row is held in registers, two packs of 16 bytes a thread (four for very wide rows), so that it is read once.
/// Rows of one warp need no barrier: a block then takes eight of them at a time.
struct NormRows {
  int packs_per_thread = 0;  // 0: the row is too wide to be held
  int warps = 16, rows_per_block = 1;
  dim3 block() const { return dim3(static_cast<unsigned>(32 * warps), static_cast<unsigned>(rows_per_block)); }
  int threads() const { return 32 * warps * rows_per_block; }
};

inline NormRows norm_rows(int64_t packs) {
  if (packs > 2048) return {};
  if (packs > 1024) return {4, 16, 1};
  const int warps = static_cast<int>(divide_up(packs, 64));
  return {2, warps, warps == 1 ? 8 : 1};
}

/// Rows of partial sums that a backward leaves: its blocks loop over rows, as many at once as keep the memory busy and
/// no more, because every one of them writes a row.
template <class T>
int64_t norm_partials(int64_t rows, int64_t dim) {
  const NormRows shape = norm_rows(divide_up(dim, kPackOf<T>));
  const int64_t blocks = int64_t{num_multiprocessors()} * std::max(1, 768 / shape.threads());
  return std::min(blocks, divide_up(rows, shape.rows_per_block)) * shape.rows_per_block;
}

}  // namespace hanok::cuda
