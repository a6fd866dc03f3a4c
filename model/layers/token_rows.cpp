#include "model/layers/token_rows.h"

#include "model/kernels/scatter_rows.h"
#include "parallel/collectives.h"
#include "parallel/redistribute.h"

namespace hanok {

Tensor write_rows(const Tensor& x_TD, const Tensor& index_M, const Tensor& rows_MD) {
  return replace_rows(x_TD, index_M, rows_MD.to(x_TD.scalar_type()));
}

Tensor add_rows(
    const Tensor& x_TD, const Tensor& index_M, const Tensor& rows_MD, int64_t total_rows, const Groups& groups) {
  if (!groups.sequence_parallel || groups.tp->size() == 1) return add_at_rows(x_TD, index_M, rows_MD, 0);
  // Every rank has all of rows_MD but uses only its own: their gradient is the sum over ranks.
  return add_at_rows(x_TD, index_M, copy_to_group(rows_MD, groups.tp), sequence_range(total_rows, groups).begin);
}

Tensor to_sequence(const Tensor& x_TD, const Groups& groups) {
  return redistribute(x_TD, Layout::kFull, Layout::kSequence, groups);
}

int64_t padded_rows(int64_t rows, int64_t granule, const Groups& groups) {
  const int64_t step = granule * (groups.sequence_parallel ? groups.tp->size() : 1);
  return (rows + step - 1) / step * step;
}

}  // namespace hanok
