#pragma once

#include <vector>

#include "base/tensor.h"

namespace hanok {

/// Rows e_0, e_1, ... of x, count_e of them each, times the matrix of their expert: y_n = W_e x_n.
/// shapes: x_ND [N, D], weight_EOD [E, O, D] contiguous, counts_E: of the rows, on the host -> y_NO
/// errors: kShape if shapes do not fit or counts do not add up to N
/// grads:  x_ND, weight_EOD (added straight to the buffer of the step where the weight has one)
/// A loop over experts; on GPUs with bf16 in one launch (at::_grouped_mm).
Tensor grouped_linear(const Tensor& x_ND, const Tensor& weight_EOD, const std::vector<int64_t>& counts_E);

}  // namespace hanok
