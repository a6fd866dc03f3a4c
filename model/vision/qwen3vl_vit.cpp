#include "model/vision/qwen3vl_vit.h"

#include "base/error.h"
#include "base/upload.h"
#include "model/layers/attention.h"
#include "model/layers/mlp.h"
#include "model/layers/norm.h"
#include "model/layers/recompute.h"
#include "model/layers/token_rows.h"
#include "model/vision/patch_geometry.h"

namespace hanok {
namespace {

constexpr double kNormEps = 1e-6, kRopeTheta = 10000;  // not in the family's config files

class Block {
 public:
  Block(const TowerConfig& config, const BuildContext& ctx)
      : first_(ctx.num_params()),
        attn_norm_(ctx.in("attn_norm"), config.hidden, kNormEps),
        attn_(ctx.in("attn"),
              {.width = config.hidden,
               .heads = config.heads,
               .kv_heads = config.heads,
               .head_dim = config.hidden / config.heads,
               .bias = true}),
        mlp_norm_(ctx.in("mlp_norm"), config.hidden, kNormEps),
        mlp_(ctx.in("mlp"),
             {.in = config.hidden,
              .ffn = config.ffn,
              .out = config.hidden,
              .form = GeluMlp::Form::kTanh,
              .is_added = true}),
        weights_(ctx.params_since(first_)) {}

  Tensor forward(const Tensor& x_PW, const RopeTable& rope, const Segments& frames) const {
    const Tensor h_PW = x_PW + attn_.forward(attn_norm_.forward(x_PW), rope, frames);
    return h_PW + mlp_.forward(mlp_norm_.forward(h_PW));
  }
  const std::vector<Tensor>& weights() const { return weights_; }

 private:
  size_t first_;
  LayerNorm attn_norm_;
  SelfAttention attn_;
  LayerNorm mlp_norm_;
  GeluMlp mlp_;
  std::vector<Tensor> weights_;
};

class Qwen3VlVit : public Tower {
 public:
  Qwen3VlVit(const ModelConfig& config, const BuildContext& ctx)
      : config_(config),
        dtype_(ctx.dtype()),
        groups_(&ctx.groups()),
        embed_(ctx,
               patch_values(config.tower),
               config.tower.hidden,
               config.tower.position_grid * config.tower.position_grid) {
    for (int64_t i = 0; i < config.tower.depth; ++i) blocks_.emplace_back(config.tower, ctx.in("layers", i));
  }

  TowerOutput forward(const Tensor& pixels_PC, const Tensor& grid_I3, const Execution& execution) const override {
    const int64_t merge = config_.connector.merge;
    PatchGeometry geometry = patch_geometry(grid_I3, merge, config_.tower.position_grid, [&](int64_t rows) {
      return padded_rows(rows, merge * merge, *groups_);
    });
    HANOK_REQUIRE(
        pixels_PC.dim() == 2 && pixels_PC.size(0) == geometry.rows && pixels_PC.size(1) == patch_values(config_.tower),
        kShape)
        << "pixels: got " << pixels_PC.sizes() << ", expected [" << geometry.rows << ", " << patch_values(config_.tower)
        << "] for the grids given; vision tower";
    const at::Device device = pixels_PC.device();
    const int64_t rows = geometry.position_P2.size(0);
    const auto wide = dtype_ == at::kDouble ? at::kDouble : at::kFloat;
    const RopeTable rope = axial_table(
        upload(geometry.position_P2, device), config_.tower.hidden / config_.tower.heads, kRopeTheta, dtype_);
    const Segments frames = make_segments(geometry.frame_starts, rows, device, execution.attention);
    const Tensor pixels =
        rows == geometry.rows ? pixels_PC : at::constant_pad_nd(pixels_PC, {0, 0, 0, rows - geometry.rows});
    Tensor x_PW = embed_.forward(pixels,
                                 {.index_PK = upload(geometry.taps.index_PK, device),
                                  .weight_PK = upload(geometry.taps.weight_PK.to(wide), device)});
    TowerOutput output;
    output.taps_PW.resize(config_.taps.size());
    LayerRuns layers(execution.recompute);
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const Block& block = blocks_[i];
      const auto run = [&block, rope, frames](const Tensor& x) { return block.forward(x, rope, frames); };
      x_PW = layers(run, x_PW, {.index = static_cast<int64_t>(i), .weights = block.weights()});
      for (size_t tap = 0; tap < config_.taps.size(); ++tap) {
        if (config_.taps[tap] != static_cast<int64_t>(i)) continue;
        output.taps_PW[tap] = x_PW;
        x_PW = x_PW.view_as(x_PW);  // gradients meet here in the same order whether the next block is recomputed or not
      }
    }
    layers.finish(/*backward_is_next=*/false);
    output.features_PW = x_PW;
    return output;
  }

 private:
  static int64_t patch_values(const TowerConfig& config) {
    return config.channels * config.temporal_patch * config.patch * config.patch;
  }

  ModelConfig config_;
  at::ScalarType dtype_;
  const Groups* groups_;
  PatchEmbed embed_;
  std::vector<Block> blocks_;
};

}  // namespace

std::unique_ptr<Tower> make_qwen3vl_vit(const ModelConfig& config, const BuildContext& ctx) {
  return std::make_unique<Qwen3VlVit>(config, ctx);
}

}  // namespace hanok
