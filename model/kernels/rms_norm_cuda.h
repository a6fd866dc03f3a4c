// CUDA side of rms_norm.h, on raw device pointers. Wide: f32, f64 for f64.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

/// With `added`: sum = x + added is written, and normalised.
struct RmsNormForward {
  CudaCall call;
  const void *x, *added, *weight;
  void *sum, *y;
  void* rstd;  // wide [rows]
  int64_t rows, dim;
  double eps;
};
void launch(const RmsNormForward& args);

/// With `dsum`: the gradient that reaches the sum by other ways, which is added to dx.
struct RmsNormBackward {
  CudaCall call;
  const void *dy, *x, *weight, *dsum;
  const void* rstd;
  void *dx, *dweight;
  void* partial;  // wide [norm_partials(type, rows, dim), dim]
  int64_t rows, dim;
};
void launch(const RmsNormBackward& args);
/// Rows of the scratch for a weight's gradient: one for every block that loops over rows, or for every group of rows.
int64_t norm_partials(CudaType type, int64_t rows, int64_t dim);

}  // namespace hanok
