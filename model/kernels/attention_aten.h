// Attention on a GPU by libtorch's kernels, differentiated by libtorch. Private to attention.cpp.
#pragma once

#include "model/kernels/attention.h"

namespace hanok::attention_aten {

/// The best of kFlash, kEfficient and kPlain that libtorch has for this device, dtype and width.
AttentionKernel best_kernel(const Tensor& qkv_TX, const AttentionSizes& sizes);

/// The same for queries alone.
AttentionKernel best_kernel_of_queries(const Tensor& q_TX, const AttentionSizes& sizes);

/// `kernel`: kFlash, kEfficient or kPlain.
Tensor attention(const Tensor& qkv_TX, const Segments& segments, const AttentionSizes& sizes, AttentionKernel kernel);

}  // namespace hanok::attention_aten
