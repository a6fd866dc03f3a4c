#pragma once

#include <vector>

#include "model/module.h"
#include "model/weight_gradients.h"

namespace hanok {

struct LinearShape {
  int64_t in = 0, out = 0;
  bool bias = false;
  std::vector<Segment> segments;  // of the side that the plan may cut: [q; k; v], [gate; up], heads
  bool is_added = false;          // to the stream of a block
};

/// y = x W^T + b. The plan says in which layout x arrives and y leaves; collectives happen here and nowhere else in a
/// block.
class Linear {
 public:
  Linear(const BuildContext& ctx, const LinearShape& shape);
  Tensor forward(const Tensor& x) const;
  /// Local piece [out, in].
  const Tensor& weight() const { return weight_; }

 private:
  PlanRule rule_;
  const Groups* groups_;
  WeightGradients* deferred_;
  Tensor weight_, bias_;
};

}  // namespace hanok
