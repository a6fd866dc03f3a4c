#pragma once

#include "base/tensor.h"

namespace hanok {

/// y_t = rows[m] where index_m = t, else x_t. No index may come twice.
/// shapes: x_TD [T, D], index_M int64, rows_MD [M, D] of the dtype of x -> like x; saves index
/// errors: kShape if widths or dtypes differ, or index and rows differ in length
/// grads:  x_TD (zero at replaced rows), rows_MD
Tensor replace_rows(const Tensor& x_TD, const Tensor& index_M, const Tensor& rows_MD);

/// y_t = x_t + rows[m] where index_m - first = t. Indices outside of [first, first + T) are another rank's: their rows
/// are not used, and their gradient is zero. No index may come twice.
/// shapes, errors as above. grads: x_TD, rows_MD
Tensor add_at_rows(const Tensor& x_TD, const Tensor& index_M, const Tensor& rows_MD, int64_t first);

}  // namespace hanok
