#pragma once

#include <vector>

#include "base/tensor.h"

namespace hanok {

/// Cosine and sine of the angles by which pairs (i, i + R) of a head turn, R = H / 2. Angles are computed in f32.
struct RopeTable {
  Tensor cos_TR, sin_TR;
};

/// Interleaved M-RoPE: angle j uses the height position at j = 1, 4, ..., the width position at j = 2, 5, ... (as many
/// as `section` says), and the temporal one elsewhere. Rounded to `dtype`, in which the decoder rotates. shapes:
/// position_3T int64 -> [T, H / 2] source: HF Qwen3VLTextRotaryEmbedding
RopeTable mrope_table(const Tensor& position_3T,
                      int64_t head_dim,
                      double theta,
                      const std::vector<int64_t>& section,
                      at::ScalarType dtype);

/// Rows and columns of patches: the first half of the angles turns by the row, the second by the column.
/// shapes: position_P2 int64 (row, column) -> [P, H / 2] f32 (f64 for f64)
/// source: HF Qwen3VLVisionRotaryEmbedding
RopeTable axial_table(const Tensor& position_P2, int64_t head_dim, double theta, at::ScalarType dtype);

}  // namespace hanok
