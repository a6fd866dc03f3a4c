#include "model/decoder/dense.h"

#include "model/decoder/block.h"
#include "model/layers/embedding.h"
#include "model/layers/recompute.h"
#include "model/layers/token_rows.h"

namespace hanok {
namespace {

class DenseDecoder : public Decoder {
 public:
  DenseDecoder(const ModelConfig& config, const BuildContext& ctx)
      : config_(config.decoder),
        dtype_(ctx.dtype()),
        groups_(&ctx.groups()),
        embed_(ctx.in("embed"), config.decoder.vocab, config.decoder.hidden) {
    for (int64_t i = 0; i < config_.layers; ++i) blocks_.emplace_back(config_, ctx.in("layers", i));
    norm_.emplace(ctx.in("norm"), config_.hidden, config_.norm_eps);
    const BuildContext head = ctx.in("head");
    head.rule();  // a tied head obeys its rule too
    head_weight_VD_ = config_.tied
                          ? embed_.weight()
                          : head.param("weight", {.shape = {config_.vocab, config_.hidden}, .init = ctx.random()});
  }

  Tensor embed(const Tensor& tokens_T) const override { return embed_.forward(tokens_T); }

  Tensor forward(const DecoderInput& input, const Execution& execution) const override {
    const int64_t rows = input.position_3T.size(1);
    const RopeTable rope =
        mrope_table(input.position_3T, config_.head_dim, config_.rope_theta, config_.mrope_section, dtype_);
    const Segments segments = make_segments(input.row_starts, rows, input.x_TD.device(), execution.attention);
    Tensor x_TD = to_sequence(input.x_TD, *groups_);
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const DecoderBlock& block = blocks_[i];
      const auto run = [&block, rope, segments](const Tensor& x) { return block.forward(x, rope, segments); };
      x_TD = is_recomputed(i, execution.recompute_every) ? recompute(run, x_TD, block.weights()) : run(x_TD);
      if (i < input.taps_MD.size()) x_TD = add_rows(x_TD, input.vision_index_M, input.taps_MD[i], rows, *groups_);
    }
    return norm_->forward(x_TD);
  }

  VocabShard head() const override { return {head_weight_VD_, embed_.first_row(), config_.vocab}; }

 private:
  DecoderConfig config_;
  at::ScalarType dtype_;
  const Groups* groups_;
  Embedding embed_;
  std::vector<DecoderBlock> blocks_;
  std::optional<RmsNorm> norm_;
  Tensor head_weight_VD_;
};

}  // namespace

std::unique_ptr<Decoder> make_dense(const ModelConfig& config, const BuildContext& ctx) {
  return std::make_unique<DenseDecoder>(config, ctx);
}

}  // namespace hanok
