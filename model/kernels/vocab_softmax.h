#pragma once

#include "base/tensor.h"

namespace hanok {

/// What one shard of the vocabulary knows of log softmax(y W^T)[target], in f32 (f64 for f64).
struct VocabStats {
  Tensor max_N;     // largest logit of the shard (-inf for an empty shard)
  Tensor sum_N;     // sum of exp(logit - max)
  Tensor target_N;  // the target's logit where the shard holds it, else 0
};

/// Logits y W^T exist for a block of columns at a time, rounded to the dtype of y first, as HF does.
/// shapes: y_ND, weight_VD (the shard's rows), target_N int64 counted from the shard's first row; outside [0, V): not
/// here
VocabStats vocab_stats(const Tensor& y_ND, const Tensor& weight_VD, const Tensor& target_N);

struct VocabGrads {
  Tensor dy_ND;       // of this shard alone: the sum over shards is the gradient
  Tensor dweight_VD;  // undefined unless asked for, and where it was added to `add_to_VD`
};

/// Gradient of sum_n g_n (log_sum_n - logit_n[target]): dz = g (softmax - onehot), logits recomputed block by block.
/// shapes: log_sum_N (over the whole vocabulary) and g_N as in VocabStats; add_to_VD like weight_VD, or undefined;
/// `add_to_is_empty`: it is written instead
VocabGrads vocab_grads(const Tensor& y_ND,
                       const Tensor& weight_VD,
                       const Tensor& target_N,
                       const Tensor& log_sum_N,
                       const Tensor& g_N,
                       bool needs_dweight,
                       Tensor add_to_VD = {},
                       bool add_to_is_empty = false);

}  // namespace hanok
