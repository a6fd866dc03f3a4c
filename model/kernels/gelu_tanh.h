#pragma once

#include "base/tensor.h"

namespace hanok {

/// y = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), computed in f32 (f64 for f64).
/// shapes: x [...] -> y like x; saves x
/// errors: kShape if x is no float of 32, 64 or 16 bits (on the CPU: bf16); kDevice if a launch fails
/// grads:  x
/// source: arXiv 1606.08415; torch's gelu(approximate = "tanh"), this takes less than half of its time on the CPU
Tensor gelu_tanh(const Tensor& x);

}  // namespace hanok
