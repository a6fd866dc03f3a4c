#pragma once

#include "base/tensor.h"

namespace hanok {

/// y = cast(x / sqrt(mean_D(x^2) + eps)) * weight_D, accumulated in f32 (f64 for f64).
/// shapes: x [..., D], weight_D [D], same dtype -> y like x; saves x and rstd of every row
/// errors: kShape if the last dim of x is not D; kDevice if a launch fails
/// grads:  x, weight_D
/// source: arXiv 1910.07467 eq. 4; HF Qwen3VLTextRMSNorm (weight applied after the cast)
Tensor rms_norm(const Tensor& x, const Tensor& weight_D, double eps);

struct SumAndNorm {
  Tensor sum, norm;
};
/// sum = x + added, norm = rms_norm(sum): on a GPU in one pass, and the two gradients that reach the sum add up in one.
/// shapes, errors, source as above; x and added alike
/// grads:  x, added, weight
SumAndNorm add_rms_norm(const Tensor& x, const Tensor& added, const Tensor& weight_D, double eps);

}  // namespace hanok
