// CUDA side of interpolate_rows.h, on raw device pointers. Wide: f32, f64 for f64.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

struct InterpolateRowsForward {
  CudaCall call;
  const void* table;
  const int64_t* index;  // [rows, taps]
  const void* weight;    // wide [rows, taps]
  void* y;
  int64_t rows, taps, width;
};
void launch(const InterpolateRowsForward& args);

}  // namespace hanok
