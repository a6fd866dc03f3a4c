#pragma once

#include "base/tensor.h"

namespace hanok {

/// y_t = table[index_t - first], or zeros where that row is not in the table (another rank has it).
/// shapes: table [rows, D], index_T int64 -> [T, D]
/// errors: kDevice if a launch fails
/// grads:  table. Sums run in the order of T (on a GPU in stretches of it) and are added to the rows of the table's
///         gradient buffer, unrounded where that is wider: on a large vocabulary, zeroing and adding whole tables costs
///         more than a small model's layers.
Tensor lookup_rows(const Tensor& table, const Tensor& index_T, int64_t first);

}  // namespace hanok
