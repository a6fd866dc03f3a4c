// CUDA side of gelu_tanh.h, on raw device pointers.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

struct GeluTanhForward {
  CudaCall call;
  const void* x;
  void* y;
  int64_t count;
};
void launch(const GeluTanhForward& args);

struct GeluTanhBackward {
  CudaCall call;
  const void *dy, *x;
  void* dx;
  int64_t count;
};
void launch(const GeluTanhBackward& args);

}  // namespace hanok
