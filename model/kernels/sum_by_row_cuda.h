// The gradient of a table whose rows were looked up: what the uses of each row received, added in their order.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

/// out[key] = or += sum of weight_u * dy[u / taps] over the uses u of `key`. Rows without a use are not written.
struct SumByRow {
  CudaCall call;       // type of dy
  const int64_t* key;  // [uses], sorted
  const int64_t* use;  // [uses]: which use a sorted key belongs to; equal keys in rising order
  const void* weight;  // wide [uses], by use; null: ones
  const void* dy;      // [uses / taps, width]
  void* out;           // [rows, width]: of keys first to first + rows - 1, other keys are another rank's
  bool is_wide;        // out is wide; else it has the type of dy
  bool adds;           // to what lies in out
  void* partial;       // wide [sum_by_row_partials(uses), width]
  int64_t uses, taps, rows, width, first;
};
void launch(const SumByRow& args);
int64_t sum_by_row_partials(int64_t uses);

}  // namespace hanok
