// CUDA side of scatter_rows.h, on raw device pointers.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

/// source[t] = m where index[m] - first = t, else -1.
struct InvertIndex {
  CudaCall call;  // its type is not used
  const int64_t* index;
  int32_t* source;  // [rows]
  int64_t count, rows, first;
};
void launch(const InvertIndex& args);

/// y_t = x_t, with rows[source_t] in its place or (`add`) added to it where source_t >= 0. Null rows: zeros.
struct ScatterRows {
  CudaCall call;
  bool add;
  const void *x, *rows;
  const int32_t* source;  // [num_rows]
  void* y;
  int64_t num_rows, width;
};
void launch(const ScatterRows& args);

}  // namespace hanok
