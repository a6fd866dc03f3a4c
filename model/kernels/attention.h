#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/tensor.h"

namespace hanok {

/// Who computes attention on a GPU. kAuto takes the fastest that the device, the dtype and the widths allow.
enum class AttentionKernel { kAuto, kCudnn, kFlash, kEfficient, kPlain };
/// "auto", "cudnn", "flash", "efficient", "plain". errors: kConfig for another name
AttentionKernel attention_kernel(std::string_view name);

/// How the rows of one cp rank meet those of the others in attention: all keys and values gathered, passed around a
/// ring, or heads exchanged for rows. kAuto: kHeads on a GPU where they fit, else kGather.
enum class ContextWay { kAuto, kGather, kRing, kHeads };
/// "auto", "gather", "ring", "heads". errors: kConfig for another name
ContextWay context_way(std::string_view name);

struct RaggedOffsets;
struct ContextRows;

/// Samples of a packed row (or frames of a tower's input): segment s covers rows [starts[s], starts[s + 1]).
struct Segments {
  Tensor starts;         // int32 [S + 1], host
  Tensor device_starts;  // the same on the device of the activations
  int64_t longest = 0;
  AttentionKernel kernel = AttentionKernel::kAuto;
  std::shared_ptr<RaggedOffsets> ragged;  // what cuDNN wants to know, made at first use and shared by all layers
  std::shared_ptr<const ContextRows>
      context;  // rows of other ranks (layers/context_attention.h); null: all rows are here
};
/// errors: kShape unless starts rise from 0 to rows
Segments make_segments(const Tensor& starts,
                       int64_t rows,
                       at::Device device,
                       AttentionKernel kernel = AttentionKernel::kAuto);

struct AttentionSizes {
  int64_t heads, kv_heads, width;  // N, K, H
  bool causal;
  int64_t row() const { return (heads + 2 * kv_heads) * width; }
  int64_t group() const { return heads / kv_heads; }
};

/// softmax(q k^T / sqrt(H)) v inside every segment, causal or not; query head n uses key/value head n / (N / K).
/// Softmax in f32 (f64 for f64). On the CPU the result of a segment does not depend on its neighbours, nor on where in
/// the row it lies, nor on the number of threads. On a GPU segments.kernel says who computes; nothing of size T x T is
/// ever stored but by kPlain, segment by segment.
/// shapes: qkv_TX [T, (N + 2K) H] = [q | k | v] -> [T, N H]; saves qkv, the result and the log-sum of every row and
/// head errors: kShape if widths do not fit; kConfig if the chosen kernel cannot run here grads:  qkv_TX source: arXiv
/// 2205.14135 (recomputation of the softmax in the backward)
Tensor segment_attention(
    const Tensor& qkv_TX, int64_t num_heads, int64_t num_kv_heads, const Segments& segments, bool causal);

}  // namespace hanok
