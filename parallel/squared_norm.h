#pragma once

#include <vector>

#include "base/tensor.h"

namespace hanok {

/// Elements [begin, begin + size) of a flat tensor.
struct Stretch {
  int64_t begin = 0, size = 0;
};

/// Sum of x^2 over the stretches of x [n] f32|f64|bf16|f16: an f64 scalar on the device of x, squared and added in f64
/// in an order that only the stretches and the device decide. No stretch may leave x.
Tensor squared_norm(const Tensor& x, const std::vector<Stretch>& stretches);

}  // namespace hanok
