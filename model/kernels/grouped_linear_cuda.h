// CUDA side of grouped_linear.h, on raw device pointers.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

/// sum_e += share_e for the experts that have rows; what stands in the others' share is not looked at. `is_empty`: sum
/// is written instead, zeros for the others.
struct AddExpertShares {
  CudaCall call;      // type of sum
  void* sum;          // [experts, size]
  const void* share;  // [experts, size], bf16
  const int* ends;    // [experts]
  int64_t experts, size;
  bool is_empty;
};
void launch(const AddExpertShares& args);

}  // namespace hanok
