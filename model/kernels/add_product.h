#pragma once

#include "base/tensor.h"

namespace hanok {

/// sum_MN += a_MK b_KN, in place; with a and b in 16 bits and `sum` in f32, products are added in f32 and never rounded
/// to 16 bits. shapes: any strides of a and b that a matrix product takes. errors: as libtorch
/// source: weight gradients of Megatron-LM's fused accumulation
void add_product(Tensor& sum_MN, const Tensor& a_MK, const Tensor& b_KN);
/// The same where nothing was added yet: sum_MN = a_MK b_KN, whatever lies there.
void set_product(Tensor& sum_MN, const Tensor& a_MK, const Tensor& b_KN);

}  // namespace hanok
