// CUDA side of vocab_softmax.h, on raw device pointers.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

/// Largest logit of each row, sum of exp(logit - max), and the target's logit (0 where it is not among the columns).
struct VocabRowStats {
  CudaCall call;
  const void* z;  // [rows, columns]
  const int64_t* target;
  void *max, *sum, *target_logit;  // wide [rows]
  int64_t rows, columns;
};
void launch(const VocabRowStats& args);

/// z becomes g (exp(z - log_sum) - [column is the target]), in its own type.
struct VocabGradient {
  CudaCall call;
  void* z;
  const int64_t* target;
  const void *log_sum, *g;  // wide [rows]
  int64_t rows, columns;
};
void launch(const VocabGradient& args);

}  // namespace hanok
