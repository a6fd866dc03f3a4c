// CUDA side of vocab_softmax.h: one block of columns [first, first + columns) of the logits z, on raw device pointers.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

/// Takes the block into the running statistics of each row.
struct VocabStatsUpdate {
  CudaCall call;
  const void* z;  // [rows, columns]
  const int64_t* target;
  void *max, *sum, *target_logit;  // wide [rows]
  int64_t rows, columns, first;
};
void launch(const VocabStatsUpdate& args);

/// z becomes g (exp(z - log_sum) - [column is the target]), in its own type.
struct VocabGradient {
  CudaCall call;
  void* z;
  const int64_t* target;
  const void *log_sum, *g;  // wide [rows]
  int64_t rows, columns, first;
};
void launch(const VocabGradient& args);

}  // namespace hanok
