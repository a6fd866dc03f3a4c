#pragma once

#include "base/tensor.h"

namespace hanok {

/// y = (x - mean_D(x)) / sqrt(var_D(x) + eps) * weight_D + bias_D, computed in f32 (f64 for f64), rounded once.
/// shapes: x [..., D], weight_D, bias_D [D], same dtype -> y like x; saves x, and mean and rstd of every row
/// errors: kShape if the last dim of x is not D; kDevice if a launch fails
/// grads:  x, weight, bias
/// source: arXiv 1607.06450; on the CPU libtorch's own kernel, which is one pass
Tensor layer_norm(const Tensor& x, const Tensor& weight_D, const Tensor& bias_D, double eps);

}  // namespace hanok
