#pragma once

#include "base/tensor.h"

namespace hanok {

/// Samples of a packed row (or frames of a tower's input): segment s covers rows [starts[s], starts[s + 1]).
struct Segments {
  Tensor starts;         // int32 [S + 1], host
  Tensor device_starts;  // the same on the device of the activations
  int64_t longest = 0;
};
/// errors: kShape unless starts rise from 0 to rows
Segments make_segments(const Tensor& starts, int64_t rows, at::Device device);

/// softmax(q k^T / sqrt(H)) v inside every segment, causal or not; query head n uses key/value head n / (N / K).
/// Softmax in f32 (f64 for f64). On the CPU the result of a segment does not depend on its neighbours, nor on where in
/// the row it lies, nor on the number of threads. On CUDA: flash for 16-bit types where the device has it,
/// memory-efficient or plain otherwise. shapes: qkv_TX [T, (N + 2K) H] = [q | k | v] -> [T, N H]; saves qkv, the result
/// and the log-sum of every row and head errors: kShape if widths do not fit grads:  qkv_TX source: arXiv 2205.14135
/// (recomputation of the softmax in the backward)
Tensor segment_attention(
    const Tensor& qkv_TX, int64_t num_heads, int64_t num_kv_heads, const Segments& segments, bool causal);

}  // namespace hanok
