// Head and cross-entropy in one: logits exist only for labelled tokens, a chunk at a time, over vocabulary shards.
#pragma once

#include <memory>

#include "parallel/groups.h"

namespace hanok {

/// This rank's rows of the output head: row i is token `begin` + i of a vocabulary of `total`.
struct VocabShard {
  Tensor weight_VD;
  int64_t begin = 0, total = 0;
};

/// Sum over labelled tokens of weight_n * -log softmax(y W^T)[target], f32 (f64 when y is f64), equal on every rank of
/// tp.
/// shapes: y_TD in sequence layout (local rows when sequence parallelism is on); head: local rows of V; targets_T int64
///         over all T rows (on the host or the device), -100 = no label; weight_N one per labelled token, in order
/// errors: kShape if a target is outside the vocabulary
/// grads:  y_TD, head.weight_VD. Both are made here, while the logits of a chunk of rows are at hand, and the weight's
///         is added straight to its buffer or dense .grad: whoever has one must run the backward with a gradient of 1,
///         and scale weight_N instead. Memory: O(chunk x V / tp), never T x V
/// source: Megatron-LM's vocabulary-parallel cross-entropy (max and sum all-reduced); arXiv 2410.10989 for gradients in
///         the forward
Tensor linear_cross_entropy(
    const Tensor& y_TD, const VocabShard& head, const Tensor& targets_T, const Tensor& weight_N, const Groups& groups);

/// -log softmax(y W^T)[target] of every labelled token by itself, without gradients: f32 [N], equal on every rank of
/// tp.
Tensor label_losses(const Tensor& y_TD, const VocabShard& head, const Tensor& targets_T, const Groups& groups);

/// Log-probabilities of `candidates_C` (token ids) at the given rows, without gradients: f32 [rows, C], equal on every
/// rank.
Tensor candidate_logprobs(
    const Tensor& y_TD, const VocabShard& head, const Tensor& rows, const Tensor& candidates_C, const Groups& groups);

}  // namespace hanok
