// AdamW on this rank's ZeRO-1 shard, in f32: master values and both moments.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "parallel/grad_sync.h"
#include "parallel/side_stream.h"
#include "trainer/adamw_update.h"

namespace hanok {

/// Rate and decay of one parameter, by glob. First match of optimizer.groups wins; optimizer.no_decay sets decay to 0
/// unless a matching group names one.
struct ParamRates {
  double lr_scale = 1, weight_decay = 0;
};
ParamRates rates_of(const OptimizerConfig& config, const std::string& param_name);

/// How a stage sums its gradients.
GradSyncOptions gradient_options(const StageConfig& stage);

/// Which steps bring a gradient to a parameter: all, or those that have pictures (those of tower and connector).
enum Reach { kAlways, kByPictures, kReaches };
Reach reach_of(const std::string& param_name);

/// Steps whose update was applied.
struct AppliedSteps {
  int64_t all = 0, with_pictures = 0;
  bool operator==(const AppliedSteps&) const = default;
};

class AdamW {
 public:
  /// Copies the parameters' current values into the f32 master shard. State exists for trainable parameters only.
  AdamW(const OptimizerConfig& config, ParamTable& params, GradSync& grads);
  /// One step with the gradients of GradSync::shard(), multiplied by `grad_scale` first (a device scalar: the clipping
  /// factor). With the group's rate r = lr * lr_scale: values *= 1 - r * decay; values -= r * m_hat / (sqrt(v_hat) +
  /// eps). Of each Reach, nothing changes where `apply` (bool [kReaches] on the device) is false, its count of steps
  /// included: torch leaves parameters that no gradient reaches as they are. Block by block the values are then handed
  /// to every rank (GradSync::await_values). Collective over the grad group. source: torch.optim.AdamW
  void step(const Tensor& grad_scale, const Tensor& apply, double lr);
  /// The next step changes nothing before this mark: somebody reads the values.
  void update_after(const SideStream::Mark& mark) { read_ = mark; }
  AppliedSteps num_steps() const;  // exponents of the bias correction. Waits for the device
  void set_num_steps(const AppliedSteps& steps);
  /// Shard buffers, f32; laid out as pieces() says.
  const std::vector<ShardPiece>& pieces() const { return grads_->pieces(); }
  Tensor& master() { return state_.values; }
  Tensor& first_moment() { return state_.m; }
  Tensor& second_moment() { return state_.v; }
  /// After loading the shard buffers: write the master values into the parameters.
  void publish();

 private:
  OptimizerConfig config_;
  GradSync* grads_;
  std::vector<RateRun> runs_[kReaches];
  AdamWState state_;
  // Scalars on the device, of the newest step: updates may run beside what comes next.
  Tensor num_steps_, scale_, apply_;  // int64 [kReaches], f32, bool [kReaches]
  SideStream::Mark read_;
};

}  // namespace hanok
