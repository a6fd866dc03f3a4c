// Where the gradients of a weight are summed up over the micro-batches of a step.
#pragma once

#include <vector>

#include "base/tensor.h"

namespace hanok {

/// Told of the gradients of weights, each by the number that it was attached with.
class GradWatcher {
 public:
  virtual ~GradWatcher() = default;
  /// A backward is through with the weight: its share is in the buffer, or was put off.
  virtual void backward_passed(int number) = 0;
  virtual void gradient_put_off(int number) = 0;
  virtual void gradient_added(int number) = 0;  // one that was put off
};

/// Gradients of `weight` (a leaf) are added to `buffer`, of its shape, from now on: what autograd leaves in .grad is
/// moved there after every backward. A buffer of the weight's own dtype becomes its .grad itself. `watcher` (may be
/// null) must live until the weight is detached.
void attach_grad_buffer(const Tensor& weight, const Tensor& buffer, GradWatcher* watcher = nullptr, int number = 0);
/// Forgets buffer, watcher and .grad.
void detach_grad_buffer(const Tensor& weight);

/// What the buffer holds is of no more use: the next share is written there instead of added, or zeros, by
/// fill_untouched_gradients(). A buffer that autograd adds to as .grad is zeroed at once.
void begin_gradient(const Tensor& weight);
void fill_untouched_gradients(const std::vector<Tensor>& weights);

/// The buffer of `weight`, so that an operation may add its share of the gradient there itself and hand autograd none;
/// undefined if there is none, or if `weight` is no leaf.
Tensor grad_buffer(const Tensor& weight);
/// The same for an operation that can write its share where there is none yet, which spares the zeros.
struct GradTarget {
  Tensor buffer;
  bool is_empty = false;  // write; else add
};
GradTarget grad_target(const Tensor& weight);
/// Adds a share of the gradient outside of a backward: to the buffer, else to .grad.
void add_to_gradient(const Tensor& weight, const Tensor& share);

/// An operation says that its backward leaves its share of the gradient for later; and later brings it, or an undefined
/// one if it has added it to the buffer itself.
void put_gradient_off(const Tensor& weight);
void add_put_off_gradient(const Tensor& weight, const Tensor& share);

}  // namespace hanok
