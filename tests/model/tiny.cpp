#include "tests/model/tiny.h"

#include <ATen/CPUGeneratorImpl.h>

#include "model/loss/cross_entropy.h"

namespace hanok {

ModelConfig tiny_config() {
  ModelConfig config;
  config.tower = {.type = "qwen3vl_vit",
                  .depth = 2,
                  .hidden = 32,
                  .ffn = 40,
                  .heads = 4,
                  .channels = 3,
                  .patch = 4,
                  .temporal_patch = 2,
                  .position_grid = 6};
  config.connector = {.type = "merger_mlp", .merge = 2};
  config.decoder = {.type = "qwen3_dense",
                    .layers = 3,
                    .hidden = 24,
                    .ffn = 40,
                    .heads = 4,
                    .kv_heads = 2,
                    .head_dim = 12,
                    .vocab = 67,
                    .rope_theta = 1e4,
                    .mrope_section = {2, 2, 2},
                    .tied = true};
  config.taps = {0};
  config.image_token = 60;
  config.video_token = 61;
  config.vision_start_token = 62;
  config.vision_end_token = 63;
  return config;
}

TinyRow tiny_row(const ModelConfig& config, int64_t tokens, bool pictures, at::ScalarType dtype) {
  const int64_t merge = config.connector.merge;
  const int64_t values = config.tower.channels * config.tower.temporal_patch * config.tower.patch * config.tower.patch;
  std::vector<int64_t> grid, index;
  std::vector<int32_t> starts{0};
  int64_t patches = 0, next = 0;
  const auto text = [&](int64_t count) { next += count; };
  const auto picture = [&](int64_t t, int64_t h, int64_t w) {
    grid.insert(grid.end(), {t, h, w});
    patches += t * h * w;
    for (int64_t i = 0; i < t * h * w / (merge * merge); ++i) index.push_back(next++);
  };
  const auto end_sample = [&] { starts.push_back(static_cast<int32_t>(next)); };
  text(7);
  end_sample();
  if (pictures) {
    text(2);
    picture(1, 4, 6);
    text(3);
    picture(1, 2, 2);
    text(2);
    end_sample();
    text(1);
    picture(2, 4, 2);
    text(4);
    end_sample();
  }
  text(5);
  end_sample();
  const int64_t real = next;
  next = tokens;
  end_sample();
  TinyRow row;
  row.input.tokens_T = at::randint(0, config.decoder.vocab, {tokens}, at::kLong);
  row.input.position_3T = at::randint(0, 30, {3, tokens}, at::kLong);
  row.input.row_starts = at::tensor(starts, at::kInt);
  row.input.pixels_PC = at::randn({patches, values}, dtype);
  row.input.grid_I3 = at::tensor(grid, at::kLong).view({-1, 3});
  row.input.vision_index_M = at::tensor(index, at::kLong);
  const Tensor labelled = (at::rand({tokens}) < 0.5).logical_and(at::arange(tokens) < real);
  row.targets_T = at::where(
      labelled, at::randint(0, config.decoder.vocab, {tokens}, at::kLong), at::scalar_tensor(-100, at::kLong));
  row.weight_T = at::rand({tokens}, dtype);
  return row;
}

void randomise(Vlm& model, uint64_t seed) {
  at::NoGradGuard no_grad;
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  for (Param& param : model.params()) {
    const bool norm = param.spec.init.kind == Init::Kind::kOnes;
    const double std = param.spec.shape.size() > 1 ? 1 / std::sqrt(static_cast<double>(param.spec.shape[1])) : 0.2;
    const Tensor values = at::randn(param.value.sizes(), generator, at::kDouble) * std + (norm ? 1.0 : 0.0);
    param.value.copy_(values);
  }
}

Tensor weighted_loss(const Vlm& model, const ModelOutput& output, const TinyRow& row) {
  const Tensor weight_N = row.weight_T.masked_select(row.targets_T.ne(-100));
  return linear_cross_entropy(output.y_TD, model.head(), row.targets_T, weight_N, model.groups());
}

}  // namespace hanok
