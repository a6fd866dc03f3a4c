// Rows copied and summed by a table of places, without autograd: what route_rows.cpp and parcels.cpp are made of. Rows
// of x and y may lie in wider ones: dim 1 is contiguous, dim 0 has a stride.
#pragma once

#include "base/tensor.h"

namespace hanok {

/// y_n = weight[slot_n] * x[slot_n / K]; undefined weight: 1
void spread_rows(const Tensor& x_TD, const Tensor& slot_N, const Tensor& weight_TK, int64_t choices, Tensor& y_ND);
/// y_t = sum over k of weight_tk * x[place_tk], in f32 (f64 for f64), in the order of k; undefined weight: 1; a place
/// of -1 adds nothing
void collect_rows(const Tensor& x_ND, const Tensor& weight_TK, const Tensor& place_TK, Tensor& y_TD);

}  // namespace hanok
