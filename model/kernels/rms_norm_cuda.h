// CUDA side of rms_norm.h, on raw device pointers. Wide: f32, f64 for f64.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

/// How threads lie over rows. Zeros: what norm_rows.cuh chooses for the width; others are for measurements.
struct NormLayout {
  int warps = 0;    // of a row
  int threads = 0;  // backward: on a multiprocessor at once
};

/// With `added`: sum = x + added is written, and normalised.
struct RmsNormForward {
  CudaCall call;
  const void *x, *added, *weight;
  void *sum, *y;
  void* rstd;  // wide [rows]
  int64_t rows, dim;
  double eps;
  NormLayout layout = {};
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
  NormLayout layout = {};
};
void launch(const RmsNormBackward& args);
/// Rows of the scratch for a weight's gradient: one for every block that loops over rows, or for every group of rows.
int64_t norm_partials(CudaType type, int64_t rows, int64_t dim);

}  // namespace hanok
