// CUDA side of qk_rope.h, on raw device pointers. Wide: f32, f64 for f64.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

struct QkRopeSizes {
  int64_t rows;
  int heads, kv_heads, width;  // N, K, H
};

struct QkRopeForward {
  CudaCall call;
  bool wide_tables;  // cos and sin are f32, not of the type of x
  const void *x, *q_weight, *k_weight, *cos, *sin;
  void* y;
  void* rstd;  // wide [rows, N + K]; unused without weights
  QkRopeSizes sizes;
  double eps;
};
void launch(const QkRopeForward& args);

struct QkRopeBackward {
  CudaCall call;
  bool wide_tables;
  const void *dy, *x, *q_weight, *k_weight, *cos, *sin;
  const void* rstd;
  void* dx;
  void* dweight;  // [2, H]: of q_weight and k_weight; null without weights
  void* partial;  // wide [qk_rope_partials(rows), 2, H]
  QkRopeSizes sizes;
};
void launch(const QkRopeBackward& args);
/// Rows of the scratch for the weights' gradients.
int64_t qk_rope_partials(int64_t rows);

}  // namespace hanok
