// The CPU side of attention.h. Private to attention.cpp and its test.
#pragma once

#include "model/kernels/attention.h"

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

}  // namespace hanok::attention_cpu
