// Which rows of a packed micro-batch each rank of cp holds. Pure.
#pragma once

#include <vector>

#include "base/tensor.h"

namespace hanok {

/// Rows [begin, end).
struct RowInterval {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  friend bool operator==(const RowInterval&, const RowInterval&) = default;
};

struct RowCut {
  std::vector<std::vector<RowInterval>> of_rank;  // rising and apart; empty: the rows are not cut
  bool is_cut() const { return !of_rank.empty(); }
  /// int64 host: rows of a rank, rising.
  Tensor rows_of(int rank) const;
  /// int64 host [T]: which rank holds each row, and where among its rows.
  struct Places {
    Tensor rank_T, row_T;
  };
  Places places() const;
};

/// Every rank gets the same number of rows and, as well as chunks allow, the same number of (row, earlier row of the
/// sample) pairs, which is what causal attention costs. The rows are laid out in equal chunks, 2 a rank or more until
/// the busiest rank is within 2 % of the mean; chunks go to the ranks by falling cost.
/// shapes: row_starts int32 [S + 1], host. One part: not cut.
/// errors: kShape if the rows do not divide by `parts`
RowCut cut_rows(const Tensor& row_starts, int parts);

/// Pairs that each rank computes: what cut_rows balances.
std::vector<double> pairs_by_rank(const Tensor& row_starts, const RowCut& cut);

}  // namespace hanok
