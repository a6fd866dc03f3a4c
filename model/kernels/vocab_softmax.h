#pragma once

#include "base/tensor.h"

namespace hanok {

/// Rows of y whose logits exist at one time: on the CPU a chunk stays near the cache, on a GPU it fills the device
/// (256 MB of bf16). Where the weight trains, its gradient is read and written once a chunk, and so many rows are taken
/// that the product hides it, up to the size of the weight itself. `vocab`: all of it, over `shards` ranks; by the
/// largest shard, so that every rank takes the same chunks.
int64_t rows_of_logits(int64_t vocab, int64_t shards, int64_t width, bool weight_trains, bool on_gpu);

/// y W^T, rounded to the dtype of y as HF does; on the CPU widened to what is summed in (f32, f64 for f64), because a
/// GPU's kernels widen what they read. shapes: y_ND, weight_VD (the rows of one shard)
Tensor vocab_logits(const Tensor& y_ND, const Tensor& weight_VD);

/// What one shard of the vocabulary knows of log softmax(z)[target], in f32 (f64 for f64).
struct VocabStats {
  Tensor max_N;     // largest logit of the shard (-inf for an empty shard)
  Tensor sum_N;     // sum of exp(logit - max)
  Tensor target_N;  // the target's logit where the shard holds it, else 0
};

/// shapes: z_NV as vocab_logits() gives it; target_N int64 counted from the shard's first row; outside [0, V): not here
VocabStats vocab_stats(const Tensor& z_NV, const Tensor& target_N);

/// z becomes the gradient of sum_n g_n (log_sum_n - z_n[target]) with respect to it: g (softmax - onehot).
/// shapes: log_sum_N (over the whole vocabulary) and g_N as in VocabStats
void turn_into_vocab_gradient(Tensor& z_NV, const Tensor& target_N, const Tensor& log_sum_N, const Tensor& g_N);

}  // namespace hanok
