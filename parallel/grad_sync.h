// Gradients of one optimizer step: accumulated in one flat buffer, summed over the ranks that share the weight, and
// handed to the optimizer as this rank's ZeRO-1 shard; and the weights that it makes of them on their way back. Sums,
// never means: the only division of the system is the loss by its global weight.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "parallel/grad_layout.h"
#include "parallel/groups.h"
#include "parallel/param.h"

namespace hanok {

/// Values of weights that this rank's optimizer owns: positions [shard_begin, shard_begin + weights.numel()) of the
/// shard.
struct WeightBlock {
  int64_t shard_begin = 0;
  Tensor weights;
};

/// Trainable parameters are laid end to end in buckets (grad_layout.h), each of which is cut evenly over the ranks of
/// its group: grad, or expert_grad for experts. What lies where in this rank's shard, in order. Pure.
std::vector<ShardPiece> shard_pieces(const ParamTable& params, const Groups& groups);
/// Elements, padding included.
struct GradSizes {
  int64_t buffer = 0;  // of all gradients that a rank accumulates
  int64_t shard = 0;
};
GradSizes gradient_sizes(const ParamTable& params, const Groups& groups);

struct GradSyncOptions {
  at::ScalarType accumulate = at::kFloat;  // f64 in tests
  std::optional<at::ScalarType> reduce;    // gradients travel and are summed over ranks in; none: `accumulate`
  bool overlap = false;                    // see GradSync
  int64_t bucket_elements = 0;             // 0: the usual size, which shard_pieces() supposes
};

/// With `overlap`, buckets leave in a fixed order while backwards run, each when its last gradient is there
/// (expect_last); and all ranks' parts of the weights come while the next forward runs: whoever reads weights calls
/// await_values() first. On GPUs both happen on a stream of their own, on which every operation of the grad groups
/// is, and so does the update of a rank that shares no weight; otherwise at the same places, where all wait. The
/// same sums in the same order either way.
class GradSync {
 public:
  /// Allocates the buffers and hooks every trainable parameter; frozen ones get no memory and requires_grad off. The
  /// values of trainable parameters move into one buffer, for good; they are not moved again while this object lives.
  /// Gradients accumulate in `accumulate` whatever the dtype of the weights: a weight of that dtype has its .grad in
  /// the buffer, another one's .grad is added and released. errors: kShape if a trainable weight is not contiguous, or
  /// its device or dtype is not that of the others.
  GradSync(ParamTable& params, const Groups& groups, const GradSyncOptions& options);
  GradSync(ParamTable& params, const Groups& groups, at::ScalarType accumulate)
      : GradSync(params, groups, GradSyncOptions{.accumulate = accumulate}) {}
  ~GradSync();
  /// Before the first micro-batch of a step: the buffers count as zero.
  void start();
  /// The next backward that reaches these parameters adds to their gradients for the last time in this step; or, with
  /// `only_put_off`, what backwards have put off is added now, and nothing else will be.
  void expect_last(const std::vector<int>& params, bool only_put_off);
  /// Nothing more is added to the gradients of these parameters in this step, whether a backward reached them or not.
  void expect_no_more(const std::vector<int>& params);
  /// After the last backward: what has not left yet leaves, and gradients that ranks of tp or two stages of a pipeline
  /// both hold are summed over them first. Weights that no backward reached count as zero.
  void finish();
  /// This rank's shard of the summed gradients [shard_size] (valid between finish() and start()).
  Tensor& shard();
  /// What lies where in the shard, in order.
  const std::vector<ShardPiece>& pieces() const;
  /// Sum of squares of the global gradient, each weight counted once: f64 scalar on the device, equal on every rank.
  /// Collective over the world.
  Tensor squared_norm() const;
  /// This rank's part of the weights themselves, in their dtype, laid out as the shard.
  std::vector<WeightBlock> own_weights() const;
  /// Calls update() for each block of them, in order, and hands every rank's part to all ranks of the block's group.
  /// What update() gives a device may still run after the call, on another stream: it reads nothing that is changed or
  /// freed before the next finish(). Collective over the groups.
  void update_values(const std::function<void(const WeightBlock&)>& update);
  /// Before these weights (or all) are read: waits until they are whole. Nothing without `overlap`. Collective, unless
  /// on GPUs; ranks may ask for different weights.
  void await_values(const std::vector<Tensor>& weights);
  void await_values();
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
