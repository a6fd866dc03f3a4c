// Clipping by the global norm.
#pragma once

#include "parallel/grad_sync.h"

namespace hanok {

struct Clip {
  Tensor norm;   // f32 scalar: of the gradient of all ranks, each weight counted once
  Tensor scale;  // min(1, clip_norm / (norm + 1e-6)); 1 when clip_norm is 0. source: torch.nn.utils.clip_grad_norm_
};
Clip clip_by_norm(const GradSync& grads, double clip_norm);

}  // namespace hanok
