#include "model/connector/merger_mlp.h"

#include "model/layers/mlp.h"
#include "model/layers/norm.h"

namespace hanok {
namespace {

constexpr double kNormEps = 1e-6;

class Merger {
 public:
  Merger(const ModelConfig& config, const BuildContext& ctx, bool merge_first)
      : merged_width_(config.tower.hidden * config.connector.merge * config.connector.merge),
        merge_first_(merge_first),
        norm_(ctx.in("norm"), merge_first ? merged_width_ : config.tower.hidden, kNormEps),
        mlp_(ctx.in("mlp"), {.in = merged_width_, .ffn = merged_width_, .out = config.decoder.hidden}) {}

  Tensor forward(const Tensor& x_PW, int64_t num_tokens) const {
    const auto merge = [&](const Tensor& x) { return x.reshape({-1, merged_width_}); };
    const Tensor tokens_MD = mlp_.forward(merge_first_ ? norm_.forward(merge(x_PW)) : merge(norm_.forward(x_PW)));
    return tokens_MD.size(0) == num_tokens ? tokens_MD : tokens_MD.narrow(0, 0, num_tokens);
  }

 private:
  int64_t merged_width_;
  bool merge_first_;
  LayerNorm norm_;
  GeluMlp mlp_;
};

class MergerMlp : public Connector {
 public:
  MergerMlp(const ModelConfig& config, const BuildContext& ctx) : main_(config, ctx.in("main"), false) {
    for (size_t i = 0; i < config.taps.size(); ++i) taps_.emplace_back(config, ctx.in("taps", i), true);
  }

  VisionTokens forward(const TowerOutput& features, int64_t num_tokens) const override {
    VisionTokens tokens{.tokens_MD = main_.forward(features.features_PW, num_tokens)};
    for (size_t i = 0; i < taps_.size(); ++i)
      tokens.taps_MD.push_back(taps_[i].forward(features.taps_PW[i], num_tokens));
    return tokens;
  }

 private:
  Merger main_;
  std::vector<Merger> taps_;
};

}  // namespace

std::unique_ptr<Connector> make_merger_mlp(const ModelConfig& config, const BuildContext& ctx) {
  return std::make_unique<MergerMlp>(config, ctx);
}

}  // namespace hanok
