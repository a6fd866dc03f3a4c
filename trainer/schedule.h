// Learning rate over a stage. Pure.
#pragma once

#include "configs/schema/config.h"

namespace hanok {

/// Steps of warm-up of a stage of `num_steps`, whatever way they are given; tokens and shares round up. It may be
/// longer than the stage.
int64_t warmup_steps(const OptimizerConfig& config, int64_t num_steps, double tokens_per_step);

/// Rate of step `step` (0-based) of `num_steps`.
/// Warm-up is linear and reaches the peak at step = warm-up - 1; then cosine | linear | constant until the end, or wsd:
/// constant, then linear over the last decay_share of the stage (never into the warm-up). The last step is at
/// min_lr_ratio * lr (constant: at lr). A stage that is all warm-up, or one step long, ends at its peak.
double lr_at(const OptimizerConfig& config, int64_t step, int64_t num_steps, double tokens_per_step);

}  // namespace hanok
