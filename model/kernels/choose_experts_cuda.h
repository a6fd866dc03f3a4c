// CUDA side of choose_experts.h, on raw device pointers.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

struct ChooseExperts {
  CudaCall call;
  const void* logits;  // [tokens, experts]
  const int64_t* row;  // [tokens]
  void* weight;        // [tokens, choices], of the type of logits
  int64_t* index;
  void* share;        // [tokens, experts], f32 (f64 for f64)
  int64_t* assigned;  // [rows, experts], added to; null: not wanted
  int64_t tokens, experts, choices;
  bool normalise;
};
void launch(const ChooseExperts& args);

struct ChooseExpertsBackward {
  CudaCall call;
  const void* share;
  const int64_t *index, *row;
  const void* dweight;
  const void* added;  // [rows, experts], of the type of share: to the gradients of shares; or null
  void* dlogits;
  int64_t tokens, experts, choices;
  bool normalise;
};
void launch(const ChooseExpertsBackward& args);

}  // namespace hanok
