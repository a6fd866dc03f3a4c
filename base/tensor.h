// The tensor type of the project is libtorch's. Only the name is shortened.
#pragma once

#include <ATen/ATen.h>

namespace hanok {
using at::Tensor;
}  // namespace hanok
