// Small complete models and packed rows for tests.
#pragma once

#include <vector>

#include "base/tensor.h"
#include "model/vlm.h"

namespace hanok {

/// A Qwen3-VL with every part: tower of two blocks, one tap, decoder of three layers.
ModelConfig tiny_config();

struct TinyRow {
  ModelInput input;
  Tensor targets_T, weight_T;
};
/// Samples with and without pictures (one of them a video of two frames), a padded tail, labels on about half of the
/// tokens. `tokens`: length of the row; `dtype`: of pixels and weights.
TinyRow tiny_row(const ModelConfig& config, int64_t tokens, bool pictures, at::ScalarType dtype);

/// Random values for every weight, norms and biases included, so that no part is idle.
void randomise(Vlm& model, uint64_t seed);

/// sum_t weight_t * nll_t
Tensor weighted_loss(const Vlm& model, const ModelOutput& output, const TinyRow& row);

}  // namespace hanok
