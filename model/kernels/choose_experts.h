#pragma once

#include <functional>

#include "base/tensor.h"

namespace hanok {

/// What a loss adds to the gradient of the shares of a token of packed row r: row r of gradient_RE, which is of the
/// dtype of the shares. Undefined: nothing.
using ShareGradient = std::function<Tensor()>;

struct RoutedTokens {
  Tensor row_T;                 // int64: packed row of each token; -1: no token
  Tensor assigned_RE;           // int64, added to: tokens of a row that chose an expert; undefined: not counted
  ShareGradient gradient = {};  // asked for in the backward; empty: nothing
};

struct ExpertChoice {
  Tensor weight_TK;  // of the dtype of the logits
  Tensor index_TK;   // int64
  Tensor share_TE;   // f32 (f64 for f64), without gradient
};

/// The K experts with the largest shares, largest first (of equal ones the first). Shares are the softmax over all
/// experts in f32 (f64 for f64); weights are those of the chosen ones, `normalise`: scaled to sum to 1, then rounded.
/// shapes: logits_TE [T, E], E >= K -> see ExpertChoice; saves shares and indices
/// errors: kShape if shapes do not fit; kDevice if a launch fails
/// grads:  logits_TE
/// Logits that are not numbers choose some experts, with weights that are not numbers either.
/// source: HF Qwen3VLMoeTextTopKRouter (transformers 5.17)
ExpertChoice choose_experts(const Tensor& logits_TE, int64_t choices, bool normalise, const RoutedTokens& tokens);

}  // namespace hanok
