#include "model/decoder/block.h"

namespace hanok {

DecoderBlock::DecoderBlock(const DecoderConfig& config, int64_t layer, const BuildContext& ctx)
    : first_(ctx.num_params()),
      attn_norm_(ctx.in("attn_norm"), config.hidden, config.norm_eps),
      attn_(ctx.in("attn"),
            {.width = config.hidden,
             .heads = config.heads,
             .kv_heads = config.kv_heads,
             .head_dim = config.head_dim,
             .causal = true,
             .qk_norm = true,
             .norm_eps = config.norm_eps}),
      mlp_norm_(ctx.in("mlp_norm"), config.hidden, config.norm_eps) {
  if (config.has_experts(layer))
    moe_.emplace(ctx.in("moe"), config, layer);
  else
    mlp_.emplace(ctx.in("mlp"), config.hidden, config.ffn);
  weights_ = ctx.params_since(first_);
}

Tensor DecoderBlock::forward(const Tensor& x_TD,
                             const RopeTable& rope,
                             const Segments& segments,
                             const std::shared_ptr<Routing>& routing) const {
  const auto [h_TD, normed_TD] = mlp_norm_.forward(x_TD, attn_.forward(attn_norm_.forward(x_TD), rope, segments));
  return h_TD + (moe_ ? moe_->forward(normed_TD, routing) : mlp_->forward(normed_TD));
}

}  // namespace hanok
