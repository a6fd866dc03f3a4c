#include "model/kernels/add_product.h"

namespace hanok {

void add_product(Tensor& sum_MN, const Tensor& a_MK, const Tensor& b_KN) {
  if (sum_MN.scalar_type() == a_MK.scalar_type()) {
    sum_MN.addmm_(a_MK, b_KN);
  } else if (sum_MN.is_cuda() && sum_MN.scalar_type() == at::kFloat) {
    at::addmm_out(sum_MN, sum_MN, a_MK, b_KN, at::kFloat);
  } else {
    sum_MN.add_(at::mm(a_MK, b_KN));
  }
}

void set_product(Tensor& sum_MN, const Tensor& a_MK, const Tensor& b_KN) {
  if (sum_MN.scalar_type() == a_MK.scalar_type()) {
    at::mm_out(sum_MN, a_MK, b_KN);
  } else if (sum_MN.is_cuda() && sum_MN.scalar_type() == at::kFloat) {
    at::mm_out(sum_MN, a_MK, b_KN, at::kFloat);
  } else {
    sum_MN.copy_(at::mm(a_MK, b_KN));
  }
}

}  // namespace hanok
