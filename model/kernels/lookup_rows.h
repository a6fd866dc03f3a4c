#pragma once

#include "base/tensor.h"

namespace hanok {

/// y_t = table[index_t - first], or zeros where that row is not in the table (another rank has it).
/// shapes: table [rows, D], index_T int64 -> [T, D]
/// grads:  table. Where the table already holds a dense .grad to add to, as a sparse tensor of the rows that were used:
/// on a
///         large vocabulary, zeroing and adding whole tables costs more than a small model's layers. Sums run in the
///         order of T.
Tensor lookup_rows(const Tensor& table, const Tensor& index_T, int64_t first);

}  // namespace hanok
