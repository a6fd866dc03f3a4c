#pragma once

#include "base/tensor.h"

namespace hanok {

/// Copies of rows laid in the order of their experts: copy k of row t is slot t K + k.
struct RowOrder {
  Tensor slot_N;    // int64: which slot stands at n; every slot once
  Tensor place_TK;  // int64: where a slot stands; -1: nowhere
  Tensor ends_E;    // int32: where the rows of each expert end. Slots that stand nowhere lie behind the last
};

/// By expert, then by slot.
/// shapes: index_TK int64 [T, K], each below experts, and below 0 where a slot is to stand nowhere; row_T int64 [T]:
///         below 0 where there is no token; undefined: all are
/// errors: kShape if shapes do not fit, or for more experts than a GPU sorts by (12,287); kDevice if a launch fails
/// source: a counting sort; the permutation of Megatron-LM's token dispatcher
RowOrder order_by_expert(const Tensor& index_TK, const Tensor& row_T, int64_t experts);

}  // namespace hanok
