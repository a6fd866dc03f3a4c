#pragma once

#include "base/tensor.h"

namespace hanok {

/// Copies of rows laid in the order of their experts: copy k of row t is slot t K + k.
struct RowOrder {
  Tensor slot_N;    // int64: which slot stands at n; every slot once
  Tensor place_TK;  // int64: where a slot stands; -1: nowhere, for it has no token
  Tensor ends_E;    // int32: where the rows of each expert end. Slots without a token stand behind the last
};

/// By expert, then by slot.
/// shapes: index_TK int64 [T, K], each in [0, experts); row_T int64 [T]: below 0 where there is no token
/// errors: kShape if shapes do not fit, or for more experts than a GPU sorts by (12,287); kDevice if a launch fails
/// source: a counting sort; the permutation of Megatron-LM's token dispatcher
RowOrder order_by_expert(const Tensor& index_TK, const Tensor& row_T, int64_t experts);

/// The same for rows that came from R ranks, by sender and then expert: counts_RE int64 [R, E] of them, `rows` in all.
/// K = 1.
RowOrder order_arrived(const Tensor& counts_RE, int64_t rows);

}  // namespace hanok
