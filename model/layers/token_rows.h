// Rows of an activation by token index: where vision tokens enter the decoder.
#pragma once

#include "parallel/groups.h"

namespace hanok {

/// x_TD with rows index_M replaced by rows_MD. All in full layout. grads: x_TD (zero at the replaced rows), rows_MD
Tensor write_rows(const Tensor& x_TD, const Tensor& index_M, const Tensor& rows_MD);
/// x_TD (sequence layout) with rows_MD (full layout) added at index_M (indices of the full T): each rank adds what it
/// holds.
Tensor add_rows(
    const Tensor& x_TD, const Tensor& index_M, const Tensor& rows_MD, int64_t total_rows, const Groups& groups);
/// Full -> sequence layout. errors: kShape if rows are not divisible by tp where they are cut
Tensor to_sequence(const Tensor& x_TD, const Groups& groups);
/// Rows to which `rows` must be padded so that every rank of tp holds the same number of whole granules.
int64_t padded_rows(int64_t rows, int64_t granule, const Groups& groups);

}  // namespace hanok
