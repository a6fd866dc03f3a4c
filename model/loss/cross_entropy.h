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

/// -log softmax(y W^T)[target] for every labelled token, in f32 (f64 when y is f64).
/// shapes: y_TD in sequence layout (local rows when sequence parallelism is on); head: local
///         rows of V; targets_T int64 over all T rows (on the host or the device), -100 = no label -> nll_N f32 over
///         the labelled tokens, in order, equal on every rank of tp
/// errors: kShape if a target is outside the vocabulary
/// grads:  y_TD, head.weight_VD (added straight to a dense .grad that is there). Memory: O(chunk x V / tp), never T x
/// V; the backward recomputes the logits of each chunk source: Megatron-LM's vocabulary-parallel cross-entropy (max and
/// sum all-reduced); arXiv 2411.09009 for the fusion
Tensor linear_cross_entropy(const Tensor& y_TD, const VocabShard& head, const Tensor& targets_T, const Groups& groups);

/// Log-probabilities of `candidates_C` (token ids) at the given rows, without gradients: f32 [rows, C], equal on every
/// rank.
Tensor candidate_logprobs(
    const Tensor& y_TD, const VocabShard& head, const Tensor& rows, const Tensor& candidates_C, const Groups& groups);

}  // namespace hanok
