// CUDA side of adamw_update.h, on raw device pointers.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

/// A stretch of the shard with its rate and decay.
struct AdamWRun {
  int64_t begin, size;
  double rate, decay;  // lr * lr_scale; rate * weight_decay
};

struct AdamWKernel {
  CudaCall call;  // type of grad
  CudaType rounded_type;
  float *values, *m, *v;    // [n]
  const void* grad;         // [n]
  void* rounded;            // [n] what the weights get of the new values, or null
  const float* grad_scale;  // device scalars
  const bool* apply;
  const int64_t* steps;
  const AdamWRun* runs;  // host
  int64_t num_runs;
  double beta1, beta2, eps;
};
void launch(const AdamWKernel& args);

}  // namespace hanok
