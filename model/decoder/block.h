#pragma once

#include "configs/schema/config.h"
#include "model/layers/attention.h"
#include "model/layers/mlp.h"
#include "model/layers/norm.h"

namespace hanok {

/// x + attn(norm(x)), then + mlp(norm(.)): pre-norm, no biases, RMSNorm also over each q and k head.
class DecoderBlock {
 public:
  DecoderBlock(const DecoderConfig& config, const BuildContext& ctx);
  Tensor forward(const Tensor& x_TD, const RopeTable& rope, const Segments& segments) const;
  const std::vector<Tensor>& weights() const { return weights_; }

 private:
  size_t first_;
  RmsNorm attn_norm_;
  SelfAttention attn_;
  RmsNorm mlp_norm_;
  GatedMlp mlp_;
  std::vector<Tensor> weights_;
};

}  // namespace hanok
