// CUDA side of squared_norm.h, on raw device pointers.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

struct SquaredNorm {
  CudaCall call;
  const void* x;
  const int64_t *begin, *size;  // host [num_stretches]
  int64_t num_stretches;
  double* partial;  // [squared_norm_partials()]
  double* sum;      // scalar, set
};
void launch(const SquaredNorm& args);
int64_t squared_norm_partials();

}  // namespace hanok
