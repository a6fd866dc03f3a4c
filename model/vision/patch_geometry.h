// Where the patches of pictures and frames stand: pure functions of the grids.
#pragma once

#include <functional>

#include "model/layers/patch_embed.h"

namespace hanok {

struct PatchGeometry {
  Tensor position_P2;   // int64: row and column of every patch, in merge order
  PositionTaps taps;    // bilinear, corners aligned: patch -> four rows of the position table
  Tensor frame_starts;  // int32 [frames + 1]: attention segments; padding is one of its own
  int64_t rows = 0;     // patches without padding
};

/// shapes: grid_I3 int64, host: t, h, w in patches -> everything on the host, `padded(rows)` rows
/// errors: kShape if a grid is not positive or not divisible by merge
PatchGeometry patch_geometry(const Tensor& grid_I3,
                             int64_t merge,
                             int64_t table_edge,
                             const std::function<int64_t(int64_t)>& padded);

}  // namespace hanok
