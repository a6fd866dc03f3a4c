// Finite differences against autograd, in f64.
#pragma once

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <vector>

#include "base/tensor.h"

namespace hanok {

/// d(sum f(inputs) * c)/d(inputs) with a random c: central differences of step h have error O(h^2) plus rounding eps /
/// h, so h = 1e-5 leaves about 1e-10 relative; 1e-7 is the bound. At most `samples` entries of every input are moved.
inline void expect_gradients(const std::function<Tensor(const std::vector<Tensor>&)>& f,
                             std::vector<Tensor> inputs,
                             int64_t samples = 40) {
  constexpr double kStep = 1e-5, kBound = 1e-7;
  for (Tensor& x : inputs) x = x.detach().clone().set_requires_grad(true);
  const Tensor y = f(inputs);
  const Tensor c = at::randn(y.sizes(), y.options().requires_grad(false));
  const auto value = [&] {
    at::NoGradGuard no_grad;
    return (f(inputs) * c).sum().item<double>();
  };
  const auto grads = torch::autograd::grad({y}, inputs, {c});
  for (size_t i = 0; i < inputs.size(); ++i) {
    ASSERT_EQ(grads[i].sizes(), inputs[i].sizes());
    const double scale = grads[i].abs().max().item<double>() + 1e-3;
    const Tensor order = at::randperm(inputs[i].numel(), at::kLong);
    double* data = inputs[i].data_ptr<double>();
    for (int64_t s = 0; s < std::min(samples, inputs[i].numel()); ++s) {
      const int64_t at = order[s].item<int64_t>();
      const double kept = data[at];
      data[at] = kept + kStep;
      const double up = value();
      data[at] = kept - kStep;
      const double down = value();
      data[at] = kept;
      EXPECT_NEAR((up - down) / (2 * kStep), grads[i].flatten()[at].item<double>(), kBound * scale)
          << "input " << i << ", element " << at;
    }
  }
}

inline Tensor random_f64(at::IntArrayRef shape) {
  return at::randn(shape, at::kDouble);
}

inline bool bit_equal(const Tensor& a, const Tensor& b) {
  return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() &&
         std::memcmp(a.contiguous().const_data_ptr(), b.contiguous().const_data_ptr(), a.nbytes()) == 0;
}

}  // namespace hanok
