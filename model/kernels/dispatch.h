// Scalar type of a tensor -> template argument of a CPU kernel.
#pragma once

#include <string_view>
#include <type_traits>

#include "base/error.h"
#include "base/tensor.h"

namespace hanok {

/// What a kernel computes in: f64 for f64, else f32.
template <class T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline at::ScalarType accumulate_type(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

/// f(T{}) with T = float, double or BFloat16. errors: kShape naming the kernel
template <class F>
void dispatch_float(at::ScalarType dtype, std::string_view kernel, const F& f) {
  switch (dtype) {
    case at::kFloat: return f(float{});
    case at::kDouble: return f(double{});
    case at::kBFloat16: return f(at::BFloat16{});
    default:
      HANOK_FAIL(kShape) << "dtype: got " << at::toString(dtype) << ", expected float32, float64 or bfloat16; kernel "
                         << kernel;
  }
}

/// Rows of one unit of parallel work: enough to outweigh waking a thread.
inline int64_t row_grain(int64_t elements_per_row) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, elements_per_row));
}

/// Sums over rows are taken in blocks of this many rows, and the blocks added in order: the result does not depend on
/// the number of threads.
constexpr int64_t kRowBlock = 64;

}  // namespace hanok
