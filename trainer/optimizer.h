// AdamW on this rank's ZeRO-1 shard, in f32: master values and both moments.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "parallel/grad_sync.h"

namespace hanok {

/// Rate and decay of one parameter, by glob. First match of optimizer.groups wins; optimizer.no_decay sets decay to 0
/// unless a matching group names one.
struct ParamRates {
  double lr_scale = 1, weight_decay = 0;
};
ParamRates rates_of(const OptimizerConfig& config, const std::string& param_name);

class AdamW {
 public:
  /// Copies the parameters' current values into the f32 master shard. State exists for trainable parameters only.
  AdamW(const OptimizerConfig& config, ParamTable& params, GradSync& grads);
  /// One step: values -= lr * (lr_scale * (m_hat / (sqrt(v_hat) + eps)) + decay), gradients multiplied by `grad_scale`
  /// first (a device scalar: the clipping factor, or 0 with `apply` = false). Nothing changes when `apply` (bool device
  /// scalar) is false. Then the new values are gathered into the parameters of every rank. source: torch.optim.AdamW
  /// (decoupled decay applied before the update, bias-corrected)
  void step(const Tensor& grad_scale, const Tensor& apply, double lr);
  int64_t num_steps() const;  // applied ones: the exponent of the bias correction
  void set_num_steps(int64_t steps);
  /// Shard buffers [shard_size], f32; laid out as GradSync::pieces() says.
  Tensor& master();
  Tensor& first_moment();
  Tensor& second_moment();
  /// After loading the shard buffers: write the master values into the parameters.
  void publish();

 private:
  OptimizerConfig config_;
  ParamTable* params_;
  GradSync* grads_;
  Tensor master_, m_, v_, lr_scale_, decay_, num_steps_;
};

}  // namespace hanok
