// Where the tokens of one forward go in the layers with experts, and the load-balancing loss made of it.
#pragma once

#include <memory>

#include "parallel/groups.h"

namespace hanok {

/// The balancing loss is that of transformers' load_balancing_loss_func over one packed row r at a time, its padding
/// left out, all layers with experts taken together: with L such layers, E experts, n_r tokens of the row,
///   f_re = assignments of expert e / (L n_r),  p_re = sum of its softmax shares / (L n_r),  aux_r = E sum_e f_re p_re,
/// and of a step: aux = sum_r n_r / N aux_r, N = tokens of the step over all ranks. It is added to the loss of the
/// step, coefficient * aux, after that loss was divided by its global weight. A packed row is what the sampler deals:
/// neither dp, tp, cp, ep nor the number of rows in a micro-batch changes it. Assignments have no gradient; shares get
/// coefficient * E / (N L^2 n_r) * (assignments of e in r), put into the backward of every router, so that no second
/// backward is needed and recomputed layers get the same. (transformers pools all rows of one of its forwards, so it
/// agrees where a forward is one row.)
/// source: arXiv 2101.03961 eq. 4-6; transformers 5.17 modeling_qwen3_vl_moe.py
struct Routing {
  // Said by whoever trains.
  Tensor row_T;               // int64, all T on the model's device: packed row of each token, -1 for padding
  int64_t num_rows = 1;       // packed rows of this micro-batch
  double tokens_of_step = 0;  // N
  double coefficient = 0;     // 0: no gradient
  int64_t layers = 0, expert_layers = 0, experts = 0, experts_per_token = 0;  // of the whole model; L expert layers
  // Filled by the layers; the index of a layer is global.
  Tensor member_RT;     // 1 where one of this rank's tokens is of a row: the same for all layers
  Tensor assigned_LRE;  // int64: tokens of a row that this rank sent to an expert
  Tensor share_LRE;     // f32 (f64 for f64): sums of softmax shares of this rank's tokens
  // The sums over the layers of the pieces so far, f64 [2, R, E]: assignments, and shares. A pipeline hands them from
  // piece to piece; undefined before the first.
  Tensor carried_2RE;
  // Filled by finish() on the stage that has the last layer; a pipeline hands `gradient_RE` back to the others.
  Tensor gradient_RE;  // of the loss in the share of one token, of the dtype of shares
  Tensor aux;          // f64 scalar: this rank's part of aux; its sum over all ranks of the stage is aux

  bool is_finished() const { return gradient_RE.defined(); }
  /// Where a layer counts the tokens that it sends, [R, E]; undefined where it runs again: it was counted.
  Tensor counts_of(int64_t layer);
  /// Called by a layer with counts. `row`: of the rows of `share`.
  void add_shares(int64_t layer, const Tensor& share_TE, const Tensor& row_T);
  /// After the MLPs of layers first .. last - 1, a piece of the model: adds theirs to what is carried.
  void carry(int64_t first, int64_t last, at::ScalarType dtype);
  /// After the last layer. Collective over tp and cp, whose ranks hold parts of the rows.
  void finish(const Groups& groups);
};

}  // namespace hanok
