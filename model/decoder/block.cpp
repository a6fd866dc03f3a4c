#include "model/decoder/block.h"

namespace hanok {

DecoderBlock::DecoderBlock(const DecoderConfig& config, const BuildContext& ctx)
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
      mlp_norm_(ctx.in("mlp_norm"), config.hidden, config.norm_eps),
      mlp_(ctx.in("mlp"), config.hidden, config.ffn),
      weights_(ctx.params_since(first_)) {}

Tensor DecoderBlock::forward(const Tensor& x_TD, const RopeTable& rope, const Segments& segments) const {
  const auto [h_TD, normed_TD] = mlp_norm_.forward(x_TD, attn_.forward(attn_norm_.forward(x_TD), rope, segments));
  return h_TD + mlp_.forward(normed_TD);
}

}  // namespace hanok
