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
  double again = 0;  // forward that the backward runs once more: recomputed layers, and the logits of the fused loss
  double total() const { return forward + backward; }
  Flops& operator+=(const Flops& other);
};

/// By part of the model; attention cores (q k^T and scores v) stand apart from the matrices around them.
struct FlopsByPart {
  Flops tower, tower_attention, connector, decoder, attention, head;
  Flops sum() const;
};

/// Model FLOPs of all ranks together for `work`: 2 per weight of a matrix multiplication and row it sees, and
/// 4 n^2 x width for attention, halved where it is causal (Megatron-LM's convention). The backward is twice the forward
/// where weights train; a frozen weight costs one more forward when something before it trains, and nothing otherwise.
/// The head is counted for labelled tokens only, because logits exist for those only.
/// `params`: of one rank; global shapes and `trainable` are read, so the layout does not matter.
/// `recompute_every`: fills Flops::again, which total() leaves out.
FlopsByPart flops_by_part(const ModelConfig& config,
                          const ParamTable& params,
                          const Work& work,
                          int64_t recompute_every = 0);
/// The sum of the above.
Flops model_flops(const ModelConfig& config, const ParamTable& params, const Work& work);

}  // namespace hanok
