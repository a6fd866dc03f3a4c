#pragma once

#include "model/layers/linear.h"

namespace hanok {

/// Which rows of the learned position table a patch takes, and their shares.
struct PositionTaps {
  Tensor index_PK;   // int64
  Tensor weight_PK;  // f32 (f64 for f64)
};

/// Flattened patches -> tower width, plus learned positions resampled to each picture's grid. A linear on C-vectors,
/// not a convolution: libtorch's conv3d is 10-20 times slower at the same mathematics.
class PatchEmbed {
 public:
  /// `position_rows`: of the learned table.
  PatchEmbed(const BuildContext& ctx, int64_t patch_values, int64_t width, int64_t position_rows);
  /// pixels_PC and taps: all rows, the same on every rank of tp -> [P, W] in sequence layout
  Tensor forward(const Tensor& pixels_PC, const PositionTaps& taps) const;

 private:
  Linear project_;
  Tensor position_RW_;
  const Groups* groups_;
};

}  // namespace hanok
