// CUDA side of layer_norm.h, on raw device pointers. Wide: f32, f64 for f64.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

struct LayerNormForward {
  CudaCall call;
  const void *x, *weight, *bias;
  void* y;
  void *mean, *rstd;  // wide [rows]
  int64_t rows, dim;
  double eps;
};
void launch(const LayerNormForward& args);

struct LayerNormBackward {
  CudaCall call;
  const void *dy, *x, *weight;
  const void *mean, *rstd;
  void* dx;
  void* dparams;  // [2, dim]: of weight and bias
  void* partial;  // wide [norm_partials(type, rows, dim), 2, dim]
  int64_t rows, dim;
};
void launch(const LayerNormBackward& args);

}  // namespace hanok
