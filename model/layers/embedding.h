#pragma once

#include "model/module.h"

namespace hanok {

/// Rows of a table that is cut over the vocabulary. tokens_T int64 -> x_TD, in the layout the plan says (full).
class Embedding {
 public:
  /// `twin`: pipeline stage that holds the table too; -1: none
  Embedding(const BuildContext& ctx, int64_t vocab, int64_t width, int twin = -1);
  /// errors: kShape if a token is outside the vocabulary (host tensors; on a device the kernel asserts)
  Tensor forward(const Tensor& tokens_T) const;
  const Tensor& weight() const { return weight_; }
  int64_t first_row() const { return first_row_; }

 private:
  PlanRule rule_;
  const Groups* groups_;
  Tensor weight_;
  int64_t vocab_, first_row_;
};

}  // namespace hanok
