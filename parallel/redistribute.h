// Activation layout -> layout over tp. Everything that model code needs of tensor and sequence parallelism.
#pragma once

#include "parallel/groups.h"
#include "parallel/plan.h"

namespace hanok {

/// x [rows, ...] in layout `from` -> the same activation in layout `to`. No-op at tp = 1.
///   from -> to              forward          | backward         with sequence parallelism off
///   kSequence -> kFull      all-gather       | reduce-scatter   identity   | all-reduce
///   kPartial  -> kSequence  reduce-scatter   | all-gather       all-reduce | identity
///   kPartial  -> kFull      all-reduce       | identity         the same
///   kFull     -> kSequence  keep own rows    | all-gather       identity   | identity
/// kFull as a source of tensor-parallel work (kFull -> kHeads consumers) is spelled as kSequence -> kFull.
/// errors: kShape if rows are not divisible by tp where they are cut.
Tensor redistribute(const Tensor& x, Layout from, Layout to, const Groups& groups);

/// Rows of the local piece of an activation of `rows` rows in kSequence layout, and where it starts.
struct RowRange {
  int64_t begin = 0, size = 0;
};
RowRange sequence_range(int64_t rows, const Groups& groups);

}  // namespace hanok
