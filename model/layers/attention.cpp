#include "model/layers/attention.h"

#include "model/kernels/qk_rope.h"
#include "model/layers/context_attention.h"

namespace hanok {
namespace {

LinearShape qkv_shape(const AttentionShape& shape) {
  const int64_t q = shape.heads * shape.head_dim, kv = shape.kv_heads * shape.head_dim;
  return {.in = shape.width,
          .out = q + 2 * kv,
          .bias = shape.bias,
          .segments = {{q, shape.head_dim}, {kv, shape.head_dim}, {kv, shape.head_dim}}};
}

LinearShape out_shape(const AttentionShape& shape) {
  const int64_t q = shape.heads * shape.head_dim;
  return {.in = q, .out = shape.width, .bias = shape.bias, .segments = {{q, shape.head_dim}}, .is_added = true};
}

}  // namespace

SelfAttention::SelfAttention(const BuildContext& ctx, const AttentionShape& shape)
    : qkv_(ctx.in("qkv"), qkv_shape(shape)), out_(ctx.in("out"), out_shape(shape)), shape_(shape) {
  num_heads_local_ = out_.weight().size(1) / shape.head_dim;
  num_kv_heads_local_ = (qkv_.weight().size(0) / shape.head_dim - num_heads_local_) / 2;
  if (!shape.qk_norm) return;
  q_norm_H_ = ctx.in("q_norm").param("weight", {.shape = {shape.head_dim}, .init = ones()});
  k_norm_H_ = ctx.in("k_norm").param("weight", {.shape = {shape.head_dim}, .init = ones()});
}

Tensor SelfAttention::forward(const Tensor& x, const RopeTable& rope, const Segments& segments) const {
  const Tensor qkv = qk_rope(qkv_.forward(x),
                             {.num_heads = num_heads_local_,
                              .num_kv_heads = num_kv_heads_local_,
                              .q_weight_H = q_norm_H_,
                              .k_weight_H = k_norm_H_,
                              .eps = shape_.norm_eps,
                              .cos_TR = rope.cos_TR,
                              .sin_TR = rope.sin_TR});
  return out_.forward(segments.context
                          ? context_attention(qkv, num_heads_local_, num_kv_heads_local_, *segments.context)
                          : segment_attention(qkv, num_heads_local_, num_kv_heads_local_, segments, shape_.causal));
}

}  // namespace hanok
