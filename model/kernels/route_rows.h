#pragma once

#include "base/tensor.h"

namespace hanok {

/// Rows as they are sent to experts: y_n = x[slot_n / K].
/// shapes: x_TD [T, D], slot_N int64 [N]: the flat (t, k) that stands at n; place_TK int64 [T, K]: the n at which a
/// slot
///         stands, -1 where it stands nowhere (kernels/order_rows.h) -> y_ND; saves place
/// errors: kShape if shapes do not fit; kDevice if a launch fails
/// grads:  x_TD: sum over k of dy[place_tk], in f32 (f64 for f64), in the order of k
/// source: the permutation of Megatron-LM's token dispatcher
Tensor gather_rows(const Tensor& x_TD, const Tensor& slot_N, const Tensor& place_TK);

/// Rows as they come back: y_t = sum over k of weight_tk * x[place_tk], in f32 (f64 for f64), in the order of k; -1
/// adds nothing, and rows where no slot stands are not read.
/// shapes: x_ND [N, D], weight_TK [T, K] of the dtype of x, slot_N and place_TK as above -> y_TD; saves all of them
/// errors: as above
/// grads:  x_ND (of rows where no slot stands: anything), weight_TK
Tensor combine_rows(const Tensor& x_ND, const Tensor& weight_TK, const Tensor& slot_N, const Tensor& place_TK);

/// The same without weights: y_t = sum over k of x[place_tk]. Its backward does not read x.
Tensor sum_rows(const Tensor& x_ND, const Tensor& slot_N, const Tensor& place_TK);

}  // namespace hanok
