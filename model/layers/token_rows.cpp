#include "model/layers/token_rows.h"

#include "parallel/collectives.h"
#include "parallel/redistribute.h"

namespace hanok {

Tensor write_rows(const Tensor& x_TD, const Tensor& index_M, const Tensor& rows_MD) {
  return x_TD.index_copy(0, index_M, rows_MD.to(x_TD.scalar_type()));
}

Tensor add_rows(
    const Tensor& x_TD, const Tensor& index_M, const Tensor& rows_MD, int64_t total_rows, const Groups& groups) {
  if (!groups.sequence_parallel || groups.tp->size() == 1) return x_TD.index_add(0, index_M, rows_MD);
  const RowRange own = sequence_range(total_rows, groups);
  const Tensor local = index_M - own.begin;
  const Tensor here = local.ge(0).logical_and(local.lt(own.size)).nonzero().squeeze(1);
  // Every rank has all of rows_MD but uses only its own: their gradient is the sum over ranks.
  const Tensor rows = copy_to_group(rows_MD, groups.tp).index_select(0, here);
  return x_TD.index_add(0, local.index_select(0, here), rows);
}

Tensor to_sequence(const Tensor& x_TD, const Groups& groups) {
  return redistribute(x_TD, Layout::kFull, Layout::kSequence, groups);
}

int64_t padded_rows(int64_t rows, int64_t granule, const Groups& groups) {
  const int64_t step = granule * (groups.sequence_parallel ? groups.tp->size() : 1);
  return (rows + step - 1) / step * step;
}

}  // namespace hanok
