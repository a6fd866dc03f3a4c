// Weight gradients that a backward leaves for later.
#pragma once

#include <functional>
#include <utility>
#include <vector>

namespace torch::autograd {
struct AutogradContext;
}

namespace hanok {

/// What the backward of a Linear, or of a product with the weights of experts, leaves for later (a zero-bubble pipeline
/// hands its input gradients on first). One object a model; every layer of it looks here.
class WeightGradients {
 public:
  using Work = std::function<void()>;  // adds a product to the gradient of a weight
  /// From now on, backwards leave their products here; before that, and after, they add them at once.
  void defer(bool on) { deferring_ = on; }
  bool deferring() const { return deferring_; }
  /// Layers with experts make their products while rows travel between ranks (layers/moe.h).
  void overlap_exchanges(bool on) { overlaps_exchanges_ = on; }
  bool overlaps_exchanges() const { return overlaps_exchanges_; }
  void add(Work work) { left_.push_back(std::move(work)); }
  /// What was left since the last call, in order.
  std::vector<Work> take() { return std::exchange(left_, {}); }

 private:
  bool deferring_ = false, overlaps_exchanges_ = false;
  std::vector<Work> left_;
};

/// For an autograd function: its forward remembers (null: nothing), and its backward asks whether to leave its
/// products.
void remember(torch::autograd::AutogradContext& ctx, WeightGradients* deferred);
/// Null: they are added at once.
WeightGradients* deferring_now(const torch::autograd::AutogradContext& ctx);

}  // namespace hanok
