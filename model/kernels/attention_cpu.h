// The CPU side of attention.h and attention_pieces.h. Private to them and their tests.
#pragma once

#include "model/kernels/attention_pieces.h"

namespace hanok::attention_cpu {

using Sizes = AttentionSizes;

/// -> out_TX [T, N H], log_sum_NT [N, T]
std::pair<Tensor, Tensor> forward(const Tensor& qkv_TX, const Tensor& starts, const Sizes& sizes);
/// -> gradient of qkv_TX
Tensor backward(const Tensor& dout_TX,
                const Tensor& qkv_TX,
                const Tensor& out_TX,
                const Tensor& log_sum_NT,
                const Tensor& starts,
                const Sizes& sizes);

/// attend() and attend_backward() of attention_pieces.h
PartialAttention attend(const Tensor& q_TX, const Tensor& kv_TX, const AttentionPieces& pieces, const Sizes& sizes);
void attend_backward(const Tensor& dout_TX,
                     const Tensor& q_TX,
                     const Tensor& kv_TX,
                     const PartialAttention& whole,
                     const AttentionPieces& pieces,
                     const Sizes& sizes,
                     Tensor& dq_TX,
                     Tensor& dkv_TX);

}  // namespace hanok::attention_cpu
