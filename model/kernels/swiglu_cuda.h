// CUDA side of swiglu.h, on raw device pointers.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

struct SwiGluForward {
  CudaCall call;
  const void* h;
  void* y;
  int64_t rows, width;  // of y
};
void launch(const SwiGluForward& args);

struct SwiGluBackward {
  CudaCall call;
  const void *dy, *h;
  void* dh;
  int64_t rows, width;
};
void launch(const SwiGluBackward& args);

}  // namespace hanok
