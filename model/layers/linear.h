#pragma once

#include <utility>
#include <vector>

#include "model/module.h"

namespace hanok {

/// Products dy^T x that the backward of a Linear leaves for later (a zero-bubble pipeline hands its input gradients on
/// first). One object a model; every Linear of it looks here.
class WeightGradients {
 public:
  struct Product {
    Tensor weight, bias, x, dy;  // bias undefined: none, or frozen
  };
  /// From now on, backwards leave their products here; before that, and after, they add them at once.
  void defer(bool on) { deferring_ = on; }
  bool deferring() const { return deferring_; }
  void add(Product product) { products_.push_back(std::move(product)); }
  /// What was left since the last call.
  std::vector<Product> take() { return std::exchange(products_, {}); }

 private:
  bool deferring_ = false;
  std::vector<Product> products_;
};
/// Adds the products to the gradients of their weights, in order.
void add_products(const std::vector<WeightGradients::Product>& products);

struct LinearShape {
  int64_t in = 0, out = 0;
  bool bias = false;
  std::vector<Segment> segments;  // of the side that the plan may cut: [q; k; v], [gate; up], heads
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
