// CUDA side of route_rows.h and move_rows.h, on raw device pointers.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

/// y_n = factor_n * x[slot_n / choices]; factor_n = weight[slot_n], or 1 where weight is null.
struct SpreadRows {
  CudaCall call;
  const void* x;
  const int64_t* slot;  // [num_rows]
  const void* weight;   // of the type of x, or null
  void* y;
  int64_t num_rows, choices, width, x_step, y_step;  // steps: from row to row
};
void launch(const SpreadRows& args);

/// y_t = sum over k of weight_tk * x[place_tk], in f32 (f64 for f64); null weight: 1. Negative places add nothing.
struct CollectRows {
  CudaCall call;
  const void *x, *weight;
  const int64_t* place;  // [num_rows, choices]
  void* y;
  int64_t num_rows, choices, width, x_step, y_step;  // steps: from row to row
};
void launch(const CollectRows& args);

/// dweight_tk = <dy_t, x[place_tk]>; 0 where place is negative.
struct WeightOfRows {
  CudaCall call;
  const void *x, *dy;
  const int64_t* place;
  void* dweight;
  int64_t num_rows, choices, width;
};
void launch(const WeightOfRows& args);

}  // namespace hanok
