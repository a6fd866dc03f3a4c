// What a batch costs in floating-point operations, derived from the parameter table.
#pragma once

#include "configs/schema/config.h"
#include "parallel/param.h"

namespace hanok {

/// What a batch asks of the model, padding left out. Sums over micro-batches and ranks add up field by field.
struct Work {
  double tokens = 0;       // through the decoder
  double labels = 0;       // through the head
  double token_pairs = 0;  // sum over samples of length^2
  double patches = 0;      // through the tower
  double patch_pairs = 0;  // sum over frames of (patches of the frame)^2
};

struct Flops {
  double forward = 0, backward = 0;
  double total() const { return forward + backward; }
};

/// Model FLOPs of all ranks together for `work`, recomputation not counted: 2 per weight of a matrix multiplication and
/// row it sees, and 4 n^2 x width for attention, halved where it is causal (Megatron-LM's convention). The backward is
/// twice the forward where weights train; a frozen weight costs one more forward when something before it trains, and
/// nothing otherwise. The head is counted for labelled tokens only, because logits exist for those only.
/// `params`: of one rank; global shapes and `trainable` are read, so the layout does not matter.
Flops model_flops(const ModelConfig& config, const ParamTable& params, const Work& work);

}  // namespace hanok
