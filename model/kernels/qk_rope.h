#pragma once

#include "base/tensor.h"

namespace hanok {

struct QkRope {
  int64_t num_heads = 0, num_kv_heads = 0;
  Tensor q_weight_H, k_weight_H;  // RMSNorm of each head; undefined: none
  double eps = 0;
  Tensor cos_TR, sin_TR;  // R = H / 2 angles: pair (i, i + R) turns by angle i
};

/// RMSNorm over each query and key head (if weights are given), then rotary embedding, in one pass over the fused
/// projection [q | k | v]; v is copied. Rotation is computed in the dtype of the tables: f32 tables under bf16 round
/// once at the end, bf16 tables round every product, as HF does in the decoder.
/// shapes: qkv_TX [T, (N + 2K) H], cos/sin [T, H / 2] f32 or the dtype of qkv -> like qkv; saves qkv, tables and rstd
/// of
///         every head
/// errors: kShape if widths do not fit, or the table's dtype is neither f32 nor that of qkv; on a GPU if H > 256 (512
/// for
///         multiples of 16); kDevice if a launch fails
/// grads:  qkv_TX, q_weight_H, k_weight_H
/// source: arXiv 2104.09864 (half-split pairs); HF apply_rotary_pos_emb, apply_rotary_pos_emb_vision
Tensor qk_rope(const Tensor& qkv_TX, const QkRope& how);

}  // namespace hanok
