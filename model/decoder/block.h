#pragma once

#include <optional>

#include "configs/schema/config.h"
#include "model/layers/attention.h"
#include "model/layers/mlp.h"
#include "model/layers/moe.h"
#include "model/layers/norm.h"

namespace hanok {

/// Which of its sublayers a rank holds.
struct BlockParts {
  bool attention = true, mlp = true;
};

/// x + attn(norm(x)), then + mlp(norm(.)): pre-norm, no biases, RMSNorm also over each q and k head. The MLP is one of
/// experts where the config says so.
class DecoderBlock {
 public:
  /// `layer`: global index
  DecoderBlock(const DecoderConfig& config, int64_t layer, BlockParts parts, const BuildContext& ctx);
  Tensor forward(const Tensor& x_TD,
                 const RopeTable& rope,
                 const Segments& segments,
                 const std::shared_ptr<Routing>& routing) const;
  const std::vector<Tensor>& weights() const { return weights_; }
  /// Whether its last product, or sum over ranks, is only added to something.
  bool ends_in_product() const { return !moe_ || moe_->ends_in_exchange(); }

 private:
  Tensor feed_forward(const Tensor& normed_TD, const std::shared_ptr<Routing>& routing) const;

  std::optional<RmsNorm> attn_norm_;
  std::optional<SelfAttention> attn_;
  std::optional<RmsNorm> mlp_norm_;
  std::optional<GatedMlp> mlp_;
  std::optional<MoeMlp> moe_;  // one of the two
  std::vector<Tensor> weights_;
};

}  // namespace hanok
