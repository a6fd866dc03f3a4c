// Which frames of a micro-batch's pictures each rank of cp turns into tokens, and how those get to their rows. Pure.
#pragma once

#include "model/row_cut.h"
#include "parallel/collectives.h"

namespace hanok {

/// Vision tokens from the ranks that made them to the ranks that hold their rows. Empty at cp = 1.
struct VisionExchange {
  Tensor order_S;  // int64: this rank's tokens in the order in which they are sent, rank by rank
  Splits splits;   // tokens to and from every rank
};

struct VisionCut {
  Tensor grid_I3;                    // int64 host: one row a frame of this rank
  std::vector<RowInterval> patches;  // of the micro-batch's pixels, in the order of the frames
  int64_t stand_in_patches = 0;      // zeros after them: a rank without a frame makes one that nobody receives, so that
                                     // it takes part in every collective of the others, gradients included
  Tensor vision_index_M;             // int64 host: row of this rank for each token it receives, in the order of arrival
  VisionExchange exchange;           // order_S on the host
};

struct VisionCutting {
  int64_t merge = 2;
  double linear_patches = 0;  // a patch costs this many patches of its frame besides those it attends to
};

/// Frames stay whole; they go to the ranks by falling cost.
/// shapes: grid_I3 int64 host (t, h, w in patches; not empty), vision_index_M int64 host: token of the micro-batch that
///         receives each vision token
/// errors: kShape if the tokens of the grids and the placeholders differ in number
VisionCut cut_vision(
    const Tensor& grid_I3, const Tensor& vision_index_M, const RowCut& cut, int rank, const VisionCutting& options);

}  // namespace hanok
