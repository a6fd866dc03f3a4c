// The arithmetic of one AdamW step on flat f32 tensors. source: torch.optim.AdamW (same operations in the same order)
#pragma once

#include <vector>

#include "parallel/grad_sync.h"

namespace hanok {

/// A stretch of the shard whose parameters share rate and decay.
struct RateRun {
  int64_t begin = 0, size = 0;
  double lr_scale = 1, weight_decay = 0;
};

struct AdamWNumbers {
  double lr = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
};

/// All [n], f32, contiguous, on one device.
struct AdamWState {
  Tensor values, m, v;
};

/// grad [n] f32|bf16|f64 is multiplied by `grad_scale`; `steps` (int64 scalar) counts applied steps, this one included;
/// the three scalars lie on the device, and no host waits for them. The new values are written to `weights` as well,
/// rounded to their dtype; where there are `weights`, only what they hold is updated. Elements outside of `runs`
/// (padding) stay as they are. Nothing is written when `apply` is false. One pass over memory.
/// errors: kDevice if a launch fails
void adamw_update(AdamWState& state,
                  const Tensor& grad,
                  const Tensor& grad_scale,
                  const Tensor& apply,
                  const Tensor& steps,
                  const std::vector<RateRun>& runs,
                  const AdamWNumbers& numbers,
                  const std::vector<WeightBlock>& weights);

}  // namespace hanok
