#pragma once

#include "model/kernels/attention.h"
#include "model/layers/linear.h"
#include "model/layers/rope.h"

namespace hanok {

struct AttentionShape {
  int64_t width = 0, heads = 0, kv_heads = 0, head_dim = 0;
  bool bias = false, causal = false;
  bool qk_norm = false;
  double norm_eps = 0;
};

/// Projection to [q; k; v], norm of q and k, rotary embedding, attention inside segments, projection back.
/// Heads are cut over tp by the plan; local counts come from the weights' local shapes.
class SelfAttention {
 public:
  SelfAttention(const BuildContext& ctx, const AttentionShape& shape);
  Tensor forward(const Tensor& x, const RopeTable& rope, const Segments& segments) const;

 private:
  Linear qkv_, out_;
  Tensor q_norm_H_, k_norm_H_;
  int64_t num_heads_local_, num_kv_heads_local_;
  AttentionShape shape_;
};

}  // namespace hanok
