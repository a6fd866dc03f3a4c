// Where the gradients of a weight are summed up over the micro-batches of a step.
#pragma once

#include "base/tensor.h"

namespace hanok {

/// Gradients of `weight` (a leaf) are added to `buffer`, of its shape, from now on: what autograd leaves in .grad is
/// moved there after every backward. A buffer of the weight's own dtype becomes its .grad itself.
void attach_grad_buffer(const Tensor& weight, const Tensor& buffer);
/// Forgets buffer and .grad.
void detach_grad_buffer(const Tensor& weight);

/// The buffer of `weight`, so that an operation may add its share of the gradient there itself and hand autograd none;
/// undefined if there is none, or if `weight` is no leaf.
Tensor grad_buffer(const Tensor& weight);

}  // namespace hanok
