#pragma once

#include "base/tensor.h"
#include "model/weight_gradients.h"

namespace hanok {

/// Rows e_0, e_1, ... of x, those of one expert together, times the matrix of their expert: y_n = W_e x_n.
/// shapes: x_ND [N, D], weight_EOD [E, O, D] contiguous, ends_E int32: where the rows of each expert end -> y_NO
///         Rows behind the last end are nobody's: their y, and their gradients, may be anything.
/// errors: kShape if shapes do not fit or, on the CPU, ends fall or pass N
/// grads:  x_ND, weight_EOD (added straight to the buffer of the step where the weight has one; or left to `deferred`)
/// On GPUs with bf16 and widths of 16 bytes one launch that never asks the device (at::_grouped_mm: sums in f32,
/// products and weight gradients of a micro-batch rounded to bf16); else a loop over experts, whose ends the host
/// reads.
Tensor grouped_linear(const Tensor& x_ND,
                      const Tensor& weight_EOD,
                      const Tensor& ends_E,
                      WeightGradients* deferred = nullptr);

}  // namespace hanok
