// What a batch costs in floating-point operations, derived from the parameter table.
#pragma once

#include <vector>

#include "configs/schema/config.h"
#include "model/execution.h"
#include "parallel/param.h"
#include "parallel/pipeline_schedule.h"

namespace hanok {

/// What a batch asks of the model, padding left out. Sums over micro-batches and ranks add up field by field.
struct Work {
  double tokens = 0;       // through the decoder
  double labels = 0;       // through the head
  double token_pairs = 0;  // sum over samples of length^2
  double patches = 0;      // through the tower
  double patch_pairs = 0;  // sum over frames of (patches of the frame)^2
  /// A picture or video of `frames` temporal patches, each of height x width patches.
  void add_frames(int64_t frames, int64_t height, int64_t width);
  Work& operator+=(const Work& other);
  Work operator/(double parts) const;
};

/// Of the tokens, those that stand for patches of pictures.
double picture_share(const ModelConfig& config, const Work& work);

struct Flops {
  double forward = 0, backward = 0;
  double again = 0;  // forward that the backward runs once more, where layers are recomputed
  double total() const { return forward + backward; }
  Flops& operator+=(const Flops& other);
};

/// By part of the model; attention cores (q k^T and scores v) stand apart from the matrices around them.
struct FlopsByPart {
  Flops tower, tower_attention, connector, decoder, attention, head;
  Flops sum() const;
};

/// The products of a step one by one: a weight with the rows that see it, or the core of attention.
struct Product {
  enum class Part { kTower, kTowerAttention, kConnector, kDecoder, kAttention, kHead };
  Part part = Part::kDecoder;
  const ParamSpec* weight = nullptr;  // null: the core of attention
  int64_t layer = -1;                 // of tower or decoder
  double rows = 0;                    // that one expert, or the one weight, is multiplied with, over all ranks
  bool trains = false;                // half of the backward is for the weight
  Flops flops;
};

/// In which pass of a pipeline they are done: what runs again is, beside the input gradient; all of the head, whose
/// gradients are made where its logits are, in the forward.
PassCosts pass_flops(const Product& product);

/// Model FLOPs of all ranks together for `work`: 2 per weight of a matrix multiplication and row it sees, and
/// 4 n^2 x width for attention, halved where it is causal (Megatron-LM's convention). The backward is twice the forward
/// where weights train; a frozen weight costs one more forward when something before it trains, and nothing otherwise.
/// The head is counted for labelled tokens only, because logits exist for those only.
/// `params`: of one rank, or of a piece of a pipeline; global shapes and `trainable` are read, so the layout does not
/// matter. `recompute`: fills Flops::again, which total() leaves out. Selective recomputation runs no product again,
/// the others all but the last one of a dense block, and attention where it is not kept. `trains_before`: something
/// before these weights trains.
std::vector<Product> products_of(const ModelConfig& config,
                                 const ParamTable& params,
                                 const Work& work,
                                 const Recompute& recompute = {},
                                 bool trains_before = false);
/// The same, summed.
FlopsByPart flops_by_part(const ModelConfig& config,
                          const ParamTable& params,
                          const Work& work,
                          const Recompute& recompute = {});
/// All of them together.
Flops model_flops(const ModelConfig& config, const ParamTable& params, const Work& work);

/// Weights that one token meets: of experts those that it is sent to. The embedding counts whole.
double active_parameters(const ModelConfig& config, const ParamTable& params);

}  // namespace hanok
