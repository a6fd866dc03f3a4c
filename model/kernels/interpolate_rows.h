#pragma once

#include "base/tensor.h"

namespace hanok {

/// y_PW = sum_k weight_PK * table[index_PK], summed in f32 (f64 for f64), rounded to the dtype of the table.
/// shapes: table [rows, W], index_PK int64 [P, K], weight_PK [P, K] f32 (f64 for f64) -> [P, W]
/// errors: kShape if index and weight differ in shape, or the weights' dtype; kDevice if a launch fails
/// grads:  table
/// source: HF get_vision_interpolation_indices_and_weights (learned positions resampled to each picture's grid)
Tensor interpolate_rows(const Tensor& table, const Tensor& index_PK, const Tensor& weight_PK);

}  // namespace hanok
