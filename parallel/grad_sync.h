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

/// Trainable parameters are laid end to end, padded to a multiple of the grad group, and cut evenly over it.
/// Pure; the same for every rank of the group except for `index`.
std::vector<ShardPiece> shard_pieces(const ParamTable& params, int index, int parts);

class GradSync {
 public:
  /// Allocates the buffers (accumulation in `accumulate`, f32 by default) and hooks every trainable parameter.
  GradSync(ParamTable& params, const Groups& groups, at::ScalarType accumulate);
  ~GradSync();
  /// Before the first micro-batch of a step: zero the buffers.
  void start();
  /// After the last backward: sums replicated and partial gradients over tp, reduce-scatters over the grad group.
  void finish();
  /// This rank's shard of the summed gradients [shard_size] (valid between finish() and start()).
  Tensor& shard();
  const std::vector<ShardPiece>& pieces() const;
  /// Sum of squares of the global gradient, each weight counted once: f64 scalar on the device, equal on every rank.
  Tensor squared_norm() const;
  /// Writes updated values (shard layout, f32) back into the parameters of every rank of the grad group (all-gather).
  void scatter_values(const Tensor& shard_values);
  /// Full (unsharded) local gradient of one parameter, summed over its ranks; for tests. Valid after finish().
  Tensor full_grad(int param);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hanok
