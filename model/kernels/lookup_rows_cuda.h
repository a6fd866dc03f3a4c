// CUDA side of lookup_rows.h, on raw device pointers.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

struct LookupRowsForward {
  CudaCall call;
  const void* table;
  const int64_t* index;
  void* y;
  int64_t count, rows, width, first;
};
void launch(const LookupRowsForward& args);

}  // namespace hanok
