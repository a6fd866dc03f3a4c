// Tolerances that are computed, not chosen: atol = c * eps(dtype) * sqrt(n) * max|ref|, with n the length of the
// longest reduction behind a value and one c = 4 for the whole project. A test that needs another c says why.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/tensor.h"

namespace hanok {

constexpr double kToleranceFactor = 4;

/// Distance from 1 to the next value of the dtype.
inline double epsilon_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble: return std::numeric_limits<double>::epsilon();
    case at::kHalf: return std::ldexp(1.0, -10);
    case at::kBFloat16: return std::ldexp(1.0, -7);
    default: return std::numeric_limits<float>::epsilon();
  }
}

inline double tolerance(at::ScalarType dtype, int64_t n, double max_abs, double c = kToleranceFactor) {
  return c * epsilon_of(dtype) * std::sqrt(static_cast<double>(std::max<int64_t>(n, 1))) * max_abs;
}

struct Closeness {
  double max_error = 0, mean_error = 0;  // of |got - ref|; infinite where one side is not finite and the other is
  double max_abs = 0;                    // of the reference
  double tolerance = 0;
  bool ok = false;
  std::string text() const {
    return concat("max error ", max_error, ", mean ", mean_error, ", max |ref| ", max_abs, ", tolerance ", tolerance);
  }
};

/// Compares in f64. `n`: reduction length; `dtype`: of the arithmetic that is judged (that of `got` when undefined).
inline Closeness compare(const Tensor& got,
                         const Tensor& ref,
                         int64_t n,
                         at::ScalarType dtype = at::ScalarType::Undefined,
                         double c = kToleranceFactor) {
  Closeness result;
  if (got.sizes() != ref.sizes()) {
    result.max_error = result.mean_error = std::numeric_limits<double>::infinity();
    return result;
  }
  if (dtype == at::ScalarType::Undefined) dtype = got.scalar_type();
  const Tensor g = got.detach().cpu().to(at::kDouble), r = ref.detach().cpu().to(at::kDouble);
  if (r.numel() == 0) {
    result.ok = true;
    return result;
  }
  const Tensor same = at::eq(g, r).logical_or(g.isnan().logical_and(r.isnan()));
  const Tensor error = at::where(same, at::zeros({}, g.options()), (g - r).abs().nan_to_num(INFINITY, INFINITY));
  result.max_error = error.max().item<double>();
  result.mean_error = error.mean().item<double>();
  result.max_abs = r.abs().nan_to_num(0, 0).max().item<double>();
  result.tolerance = tolerance(dtype, n, result.max_abs, c);
  result.ok = result.max_error <= result.tolerance;
  return result;
}

/// For EXPECT_TRUE: says what differs and by how much.
inline testing::AssertionResult close_enough(const Tensor& got, const Tensor& ref, int64_t n) {
  const Closeness closeness = compare(got, ref, n);
  return closeness.ok ? testing::AssertionSuccess() : testing::AssertionFailure() << closeness.text();
}

}  // namespace hanok

/// got and ref agree within the derived tolerance of a reduction over n values.
#define EXPECT_CLOSE(got, ref, n) EXPECT_TRUE(::hanok::close_enough(got, ref, n)) << #got " vs " #ref << " "
