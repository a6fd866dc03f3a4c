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
  int64_t expert_layers = 0;  // L, of the whole model
  // Filled by the layers.
  int64_t experts_per_token = 0;
  Tensor assigned_LRE;  // int64: tokens of a row that this rank sent to an expert; index of the layer is global
  Tensor share_RE;      // f32 (f64 for f64): sums of softmax shares of this rank's tokens over all layers
  // Filled by finish().
  Tensor gradient_RE;  // of the loss in the share of one token
  Tensor aux;          // f64 scalar: this rank's part of aux; its sum over all ranks of the stage is aux

  bool is_finished() const { return gradient_RE.defined(); }
  /// Called by a layer, once a forward; recomputation adds nothing. `row`: of the rows of `share`.
  void record(int64_t layer, int64_t layers, const Tensor& index_TK, const Tensor& share_TE, const Tensor& row_T);
  /// After the last layer: assignments of a row are summed over the ranks that hold parts of it (tp and cp).
  void finish(const Groups& groups);
};

/// Hands `share_TE` on; its gradient gets the balancing loss's.
Tensor with_balance(const Tensor& share_TE, const Tensor& row_T, const std::shared_ptr<Routing>& routing);

}  // namespace hanok
