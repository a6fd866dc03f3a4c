// Gradients of one optimizer step: accumulated in one flat buffer per dtype and group, summed over the ranks that share
// the weight, and handed to the optimizer as this rank's ZeRO-1 shard. Sums, never means: the only division of the
// system is the loss by its global weight.
#pragma once

#include <memory>
#include <vector>

#include "parallel/groups.h"
#include "parallel/param.h"

namespace hanok {

/// A stretch of one parameter's local flattened values that this rank's optimizer owns.
struct ShardPiece {
  int param = 0;            // index into the table
  int64_t local_begin = 0;  // in the flattened local tensor
  int64_t size = 0;
  int64_t shard_begin = 0;  // in the rank's shard buffers
};

/// Values of weights that this rank's optimizer owns: positions [shard_begin, shard_begin + weights.numel()) of the
/// shard.
struct WeightBlock {
  int64_t shard_begin = 0;
  Tensor weights;
};

/// Trainable parameters are laid end to end, each from a multiple of 32 elements on, padded, and cut evenly over the
/// `parts` ranks of the grad group; the cuts lie on multiples of 32 too. `experts`: the weights cut over ep instead of
/// all others, over the expert_grad group. Pure; the same for every rank of the group except for `index`.
std::vector<ShardPiece> shard_pieces(const ParamTable& params, int index, int parts, bool experts = false);
/// Elements of one rank's shard, padding included; the gradient buffer has `parts` times as many.
int64_t shard_size(const ParamTable& params, int parts, bool experts = false);

class GradSync {
 public:
  /// Allocates the buffers and hooks every trainable parameter; frozen ones get no memory and requires_grad off. The
  /// values of trainable parameters move into one buffer, for good; they are not moved again while this object lives.
  /// Gradients accumulate in `accumulate` (at::kFloat; f64 in tests) whatever the dtype of the weights: a weight of
  /// that dtype has its .grad in the buffer, another one's .grad is added and released. errors: kShape if a trainable
  /// weight is not contiguous, or its device or dtype is not that of the others.
  GradSync(ParamTable& params, const Groups& groups, at::ScalarType accumulate);
  ~GradSync();
  /// Before the first micro-batch of a step: zero the buffers.
  void start();
  /// After the last backward: sums replicated and partial gradients over tp and those that two
  /// stages of a pipeline both hold over them, reduce-scatters over the grad group.
  /// Weights that no backward reached count as zero.
  void finish();
  /// This rank's shard of the summed gradients [shard_size] (valid between finish() and start()).
  Tensor& shard();
  /// What lies where in the shard: dense weights first, then experts.
  const std::vector<ShardPiece>& pieces() const;
  /// Sum of squares of the global gradient, each weight counted once: f64 scalar on the device, equal on every rank.
  /// Collective over the world.
  Tensor squared_norm() const;
  /// This rank's part of the weights themselves, in their dtype, laid out as the shard: whoever updates them calls
  /// gather_values() next.
  std::vector<WeightBlock> own_weights() const;
  /// Hands every rank's part to all ranks of the grad group. Collective over it.
  void gather_values();
  /// Both in one: writes updated values (shard layout, f32) into the parameters of every rank.
  void scatter_values(const Tensor& shard_values);
  /// Full (unsharded) local gradient of one parameter, summed over its ranks; for tests. Collective over the grad
  /// group; valid between finish() and start(). errors: kShape for a frozen parameter.
  Tensor full_grad(int param);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hanok
