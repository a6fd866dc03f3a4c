#include "model/decoder/block.h"

namespace hanok {

DecoderBlock::DecoderBlock(const DecoderConfig& config, int64_t layer, BlockParts parts, const BuildContext& ctx) {
  const size_t first = ctx.num_params();
  if (parts.attention) {
    attn_norm_.emplace(ctx.in("attn_norm"), config.hidden, config.norm_eps);
    attn_.emplace(ctx.in("attn"),
                  AttentionShape{.width = config.hidden,
                                 .heads = config.heads,
                                 .kv_heads = config.kv_heads,
                                 .head_dim = config.head_dim,
                                 .causal = true,
                                 .qk_norm = true,
                                 .norm_eps = config.norm_eps});
  }
  if (parts.mlp) {
    mlp_norm_.emplace(ctx.in("mlp_norm"), config.hidden, config.norm_eps);
    if (config.has_experts(layer))
      moe_.emplace(ctx.in("moe"), config, layer);
    else
      mlp_.emplace(ctx.in("mlp"), config.hidden, config.ffn);
  }
  weights_ = ctx.params_since(first);
}

Tensor DecoderBlock::feed_forward(const Tensor& normed_TD, const std::shared_ptr<Routing>& routing) const {
  return moe_ ? moe_->forward(normed_TD, routing) : mlp_->forward(normed_TD);
}

Tensor DecoderBlock::forward(const Tensor& x_TD,
                             const RopeTable& rope,
                             const Segments& segments,
                             const std::shared_ptr<Routing>& routing) const {
  if (!attn_) return x_TD + feed_forward(mlp_norm_->forward(x_TD), routing);
  const Tensor attended_TD = attn_->forward(attn_norm_->forward(x_TD), rope, segments);
  if (!mlp_norm_) return x_TD + attended_TD;
  const auto [h_TD, normed_TD] = mlp_norm_->forward(x_TD, attended_TD);
  return h_TD + feed_forward(normed_TD, routing);
}

}  // namespace hanok
