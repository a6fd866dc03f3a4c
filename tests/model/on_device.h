// CUDA kernels against their CPU reference in f64: values and gradients, all dtypes, addresses off their alignment. The
// same comparison must fail on a value that is 8 tolerances off, and a second run must give the same bits.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "tests/model/gradients.h"
#include "tests/support/close.h"

namespace hanok {

using Tensors = std::vector<Tensor>;

struct OpCase {
  std::string name;
  Tensors inputs;  // f64 on the CPU: cast to the dtype tried
  int64_t n;       // longest reduction of any result
  std::function<Tensors(const Tensors&)> op;
};

inline const std::vector<at::ScalarType> kDtypes = {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf};

/// x on `device`; `shifted`: one element behind an aligned address.
inline Tensor placed(const Tensor& x, at::Device device, at::ScalarType dtype, bool shifted) {
  Tensor buffer = at::empty({x.numel() + 1}, x.options().device(device).dtype(dtype));
  Tensor here = buffer.narrow(0, shifted ? 1 : 0, x.numel()).view(x.sizes());
  here.copy_(x);
  return here.detach();
}

/// Results, then gradients of the inputs for the given gradients of the results.
inline Tensors run(const OpCase& c, const Tensors& inputs, const Tensors& dys) {
  Tensors leaves;
  for (const Tensor& x : inputs) leaves.push_back(x.detach().set_requires_grad(true));
  const Tensors ys = c.op(leaves);
  Tensors results, dys_here;
  for (size_t i = 0; i < ys.size(); ++i) dys_here.push_back(dys[i].to(ys[i].options()));
  const Tensors grads = torch::autograd::grad(ys, leaves, dys_here);
  for (const Tensor& y : ys) results.push_back(y.detach());
  results.insert(results.end(), grads.begin(), grads.end());
  return results;
}

inline void check(const OpCase& c, at::ScalarType dtype, bool shifted) {
  at::manual_seed(7);
  SCOPED_TRACE(concat(c.name, " ", at::toString(dtype), shifted ? " shifted" : ""));
  Tensors exact, here;
  for (const Tensor& x : c.inputs) {
    exact.push_back(x.to(dtype).to(at::kDouble));
    here.push_back(placed(exact.back(), at::kCUDA, dtype, shifted));
  }
  Tensors dys;
  for (const Tensor& y : c.op(exact)) dys.push_back(random_f64(y.sizes()).to(dtype).to(at::kDouble));
  const Tensors expected = run(c, exact, dys), got = run(c, here, dys), again = run(c, here, dys);
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_TRUE(close_enough(got[i], expected[i], c.n)) << "result " << i;
    EXPECT_TRUE(bit_equal(got[i].cpu(), again[i].cpu())) << "result " << i << " differs from run to run";
    if (got[i].numel() == 0) continue;
    Tensor off = got[i].cpu().to(at::kDouble);
    const double tolerance = compare(got[i], expected[i], c.n).tolerance;
    off.view({-1})[off.numel() / 2] += tolerance > 0 ? 8 * tolerance : 1;  // 0: nothing but zeros is right
    EXPECT_FALSE(compare(off, expected[i], c.n, dtype).ok) << "result " << i << ": a wrong value passes";
  }
}

inline void check_all(const std::vector<OpCase>& cases) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  for (const OpCase& c : cases)
    for (const at::ScalarType dtype : kDtypes)
      for (const bool shifted : {false, true}) check(c, dtype, shifted);
}

}  // namespace hanok
