#include "model/decoder/dense.h"

#include <map>
#include <optional>

#include "model/decoder/block.h"
#include "model/kernels/dispatch.h"
#include "model/layers/context_attention.h"
#include "model/layers/embedding.h"
#include "model/layers/recompute.h"
#include "model/layers/token_rows.h"

namespace hanok {
namespace {

class DenseDecoder : public Decoder {
 public:
  DenseDecoder(const ModelConfig& config, const BuildContext& ctx)
      : config_(config.decoder), dtype_(ctx.dtype()), groups_(&ctx.groups()) {
    bool has_first = false, has_last = false;
    for (const PieceRange& piece : ctx.pieces()) {
      has_first |= piece.is_first;
      has_last |= piece.is_last;
    }
    // A tied table lies at both ends of the model.
    if (has_first || (has_last && config_.tied))
      embed_.emplace(ctx.in("embed"), config_.vocab, config_.hidden, config_.tied ? ctx.twin() : -1);
    for (const PieceRange& piece : ctx.pieces()) make_blocks(piece, ctx);
    if (has_last) make_end(ctx);
  }

  Tensor embed(const Tensor& tokens_T) const override { return embed_->forward(tokens_T); }

  Tensor forward(const DecoderInput& input, const PieceRange& piece, const Execution& execution) const override {
    const int64_t rows = input.position_3T.size(1);
    RopeTable rope;
    Segments segments;
    if (piece.attentions().size() > 0) {
      rope = mrope_table(input.position_3T, config_.head_dim, config_.rope_theta, config_.mrope_section, dtype_);
      segments = make_row_segments(input.row_starts, input.cut, rows, input.x_TD.device(), execution, *groups_);
    }
    Tensor x_TD = meeting_in_backward(input.x_TD);
    if (piece.is_first) x_TD = to_sequence(x_TD, *groups_);
    LayerRuns layers(execution.recompute);
    const auto [first, last] = piece.touched();
    for (int64_t i = first; i < last; ++i) {
      const DecoderBlock& block = *blocks_.at({piece.piece, i});
      execution.will_use(block.weights());
      const auto run = [&block, rope, segments, routing = input.routing](const Tensor& x) {
        return block.forward(x, rope, segments, routing);
      };
      x_TD = layers(run, x_TD, {.index = i, .weights = block.weights(), .ends_in_product = block.ends_in_product()});
      const auto tap = static_cast<size_t>(i - first);
      if (piece.mlps().contains(i) && tap < input.taps_MD.size())
        x_TD = add_rows(x_TD, input.vision_index_M, input.taps_MD[tap], rows, *groups_);
    }
    layers.finish(/*backward_is_next=*/piece.is_last);
    if (input.routing) {
      input.routing->carry(piece.mlps().first, piece.mlps().last, accumulate_type(dtype_));
      if (piece.is_last) input.routing->finish(*groups_);
    }
    if (!piece.is_last) return x_TD;
    execution.will_use(end_weights_);
    return norm_->forward(x_TD);
  }

  VocabShard head() const override { return {head_weight_VD_, head_first_row_, config_.vocab}; }

 private:
  void make_blocks(const PieceRange& piece, const BuildContext& ctx) {
    const auto [first, last] = piece.touched();
    for (int64_t i = first; i < last; ++i) {
      const BlockParts parts{.attention = piece.attentions().contains(i), .mlp = piece.mlps().contains(i)};
      blocks_[{piece.piece, i}] = std::make_unique<DecoderBlock>(config_, i, parts, ctx.in("layers", i));
    }
  }

  void make_end(const BuildContext& ctx) {
    const size_t first = ctx.num_params();
    norm_.emplace(ctx.in("norm"), config_.hidden, config_.norm_eps);
    const BuildContext head = ctx.in("head");
    head.rule();  // a tied head obeys its rule too
    if (config_.tied) {
      head_weight_VD_ = embed_->weight();
      head_first_row_ = embed_->first_row();
    } else {
      head_weight_VD_ = head.param("weight", {.shape = {config_.vocab, config_.hidden}, .init = ctx.random()});
      head_first_row_ = head.first_of_last_param();
    }
    end_weights_ = ctx.params_since(first);
    if (config_.tied) end_weights_.push_back(head_weight_VD_);
  }

  /// Ranks of ep meet in the backward of every layer with experts: all of them must have one, also where what trains
  /// lies below and this rank's micro-batch has no part in it (no picture, say).
  Tensor meeting_in_backward(const Tensor& x) const {
    const bool must =
        at::GradMode::is_enabled() && groups_->ep->size() * groups_->etp->size() > 1 && !x.requires_grad();
    return must ? x.detach().requires_grad_() : x;
  }

  DecoderConfig config_;
  at::ScalarType dtype_;
  const Groups* groups_;
  // What this rank's pieces hold; blocks by piece and global index.
  std::optional<Embedding> embed_;
  std::map<std::pair<int, int64_t>, std::unique_ptr<DecoderBlock>> blocks_;
  std::optional<RmsNorm> norm_;
  Tensor head_weight_VD_;
  std::vector<Tensor> end_weights_;  // of the last norm and the head
  int64_t head_first_row_ = 0;
};

}  // namespace

std::unique_ptr<Decoder> make_dense(const ModelConfig& config, const BuildContext& ctx) {
  return std::make_unique<DenseDecoder>(config, ctx);
}

}  // namespace hanok
