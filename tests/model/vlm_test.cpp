#include "model/vlm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "configs/schema/read.h"
#include "model/registry.h"
#include "tests/model/gradients.h"
#include "tests/model/tiny.h"
#include "tests/support/close.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

std::vector<Tensor> gradients(Vlm& model, const TinyRow& row) {
  for (Param& param : model.params()) param.value.mutable_grad() = Tensor();
  weighted_loss(model, model.forward(row.input), row).backward();
  std::vector<Tensor> grads;
  for (Param& param : model.params()) grads.push_back(param.value.grad());
  return grads;
}

Tensor forward(const Vlm& model, const ModelInput& input) {
  at::NoGradGuard no_grad;
  return model.forward(input).y_TD;
}

TEST(Vlm, GradientsOfTheWholeModelEqualFiniteDifferences) {
  const ModelConfig config = tiny_config();
  Vlm model(config, make_single_groups(), at::kDouble, at::kCPU);
  randomise(model, 1);
  const TinyRow row = tiny_row(config, 48, true, at::kDouble);
  const auto grads = gradients(model, row);
  constexpr double kStep = 1e-5;
  for (size_t i = 0; i < grads.size(); ++i) {
    Param& param = model.params()[i];
    ASSERT_TRUE(grads[i].defined()) << param.spec.name;
    const double scale = grads[i].abs().max().item<double>();
    EXPECT_GT(scale, 0) << param.spec.name;
    const int64_t at = grads[i].abs().argmax().item<int64_t>();
    at::NoGradGuard no_grad;
    double& value = param.value.data_ptr<double>()[at];
    const double kept = value;
    value = kept + kStep;
    const double up = weighted_loss(model, model.forward(row.input), row).item<double>();
    value = kept - kStep;
    const double down = weighted_loss(model, model.forward(row.input), row).item<double>();
    value = kept;
    EXPECT_NEAR((up - down) / (2 * kStep), grads[i].flatten()[at].item<double>(), 1e-5 * scale + 1e-8)
        << param.spec.name;
  }
}

TEST(Vlm, EmbeddingsAndWhatIsAddedToTheStreamTakeStandardDeviationsOfTheirOwn) {
  for (const int64_t experts : {0, 4}) {
    ModelConfig config = tiny_config();
    config.init_std = 0.1;
    if (experts > 0) {
      config.decoder.type = "qwen3_moe";
      config.decoder.experts = experts;
      config.decoder.experts_per_token = 2;
      config.decoder.expert_ffn = 16;
    }
    for (const bool asked : {false, true}) {
      config.embed_init_std = asked ? 1.0 : 0;
      config.residual_init_std = asked ? 0.03 : 0;
      Vlm model(config, make_single_groups(), at::kFloat, at::kCPU);
      initialise(model, 5);
      for (const Param& param : model.params()) {
        const std::string& name = param.spec.name;
        if (param.spec.init.kind != Init::Kind::kNormal) continue;
        const bool is_added = name.find(".layers.") != std::string::npos &&
                              (name.ends_with("attn.out.weight") || name.ends_with("down.weight"));
        const double own = name == "decoder.embed.weight" ? 1.0 : is_added ? 0.03 : 0.1, expected = asked ? own : 0.1;
        const double six_errors = 6 * expected / std::sqrt(2.0 * static_cast<double>(param.value.numel()));
        EXPECT_NEAR(param.value.square().mean().sqrt().item<double>(), expected, six_errors) << name;
      }
    }
  }
}

TEST(Vlm, ASampleDoesNotSeeItsNeighbours) {
  const ModelConfig config = tiny_config();
  Vlm model(config, make_single_groups(), at::kFloat, at::kCPU);
  randomise(model, 2);
  const TinyRow row = tiny_row(config, 48, true, at::kFloat);
  const Tensor before = forward(model, row.input);
  const int32_t* starts = row.input.row_starts.data_ptr<int32_t>();
  for (int64_t s = 0; s + 1 < row.input.row_starts.size(0); ++s) {
    ModelInput changed = row.input;
    changed.tokens_T = row.input.tokens_T.clone();
    changed.pixels_PC = row.input.pixels_PC.clone();
    changed.position_3T = row.input.position_3T.clone();
    for (int64_t t = starts[s]; t < starts[s + 1]; ++t) changed.tokens_T[t] = (changed.tokens_T[t] + 1) % 60;
    changed.position_3T.slice(1, starts[s], starts[s + 1]).add_(5);
    if (s == 1) changed.pixels_PC.narrow(0, 0, 28).add_(1);
    const Tensor after = forward(model, changed);
    for (int64_t other = 0; other + 1 < row.input.row_starts.size(0); ++other) {
      const Tensor a = before.slice(0, starts[other], starts[other + 1]),
                   b = after.slice(0, starts[other], starts[other + 1]);
      EXPECT_EQ(bit_equal(a, b), other != s) << "sample " << other << " after a change in " << s;
    }
  }
}

TEST(Vlm, APictureDoesNotSeeOtherFrames) {
  const ModelConfig config = tiny_config();
  Vlm model(config, make_single_groups(), at::kFloat, at::kCPU);
  randomise(model, 3);
  TinyRow row = tiny_row(config, 48, true, at::kFloat);
  const Tensor before = forward(model, row.input);
  row.input.pixels_PC.narrow(0, 28 + 8, 8).add_(1);  // second frame of the video
  const Tensor after = forward(model, row.input);
  const int64_t second_frame = row.input.vision_index_M[9].item<int64_t>();
  EXPECT_TRUE(bit_equal(before.slice(0, 0, second_frame), after.slice(0, 0, second_frame)));
  EXPECT_FALSE(bit_equal(before[second_frame], after[second_frame]));
}

std::vector<Recompute> ways_to_recompute() {
  std::vector<Recompute> ways;
  for (const int64_t every : {1, 2, 3})
    for (const Keep keep : {Keep::kInput, Keep::kAttention, Keep::kResults})
      for (const bool offload : {false, true}) ways.push_back({every, keep, offload});
  return ways;
}

std::string text(const Recompute& how) {
  return concat("every ", how.every, " keeps ", static_cast<int>(how.keep), how.offload ? " offload" : "");
}

TEST(Vlm, RecomputationGivesTheSameBits) {
  ModelConfig config = tiny_config();
  config.decoder.tied = false;
  Vlm model(config, make_single_groups(), at::kFloat, at::kCPU);
  randomise(model, 4);
  const TinyRow row = tiny_row(config, 48, true, at::kFloat);
  const auto expected = gradients(model, row);
  for (const Recompute& how : ways_to_recompute()) {
    model.set_execution({.recompute = how});
    const auto grads = gradients(model, row);
    for (size_t i = 0; i < grads.size(); ++i)
      EXPECT_TRUE(bit_equal(grads[i], expected[i])) << text(how) << " " << model.params()[i].spec.name;
  }
}

TEST(Vlm, FrozenPartsTakeNoGradientWithAndWithoutRecomputation) {
  const ModelConfig config = tiny_config();
  Vlm model(config, make_single_groups(), at::kFloat, at::kCPU);
  randomise(model, 5);
  const TinyRow row = tiny_row(config, 48, true, at::kFloat);
  const auto expected = gradients(model, row);
  for (Param& param : model.params()) {
    param.trainable = param.spec.name.rfind("connector.", 0) == 0;
    param.value.set_requires_grad(param.trainable);
  }
  for (const Recompute& how : {Recompute{}, {.every = 1}, {.every = 1, .keep = Keep::kResults, .offload = true}}) {
    model.set_execution({.recompute = how});
    const auto grads = gradients(model, row);
    for (size_t i = 0; i < grads.size(); ++i) {
      const Param& param = model.params()[i];
      EXPECT_EQ(grads[i].defined(), param.trainable) << param.spec.name;
      if (!param.trainable) continue;
      EXPECT_TRUE(bit_equal(grads[i], expected[i])) << param.spec.name;
    }
  }
}

TEST(Vlm, TextAloneLeavesTheTowerOut) {
  const ModelConfig config = tiny_config();
  Vlm model(config, make_single_groups(), at::kFloat, at::kCPU);
  randomise(model, 6);
  const TinyRow row = tiny_row(config, 24, false, at::kFloat);
  const auto grads = gradients(model, row);
  for (size_t i = 0; i < grads.size(); ++i) {
    const bool decoder = model.params()[i].spec.name.rfind("decoder.", 0) == 0;
    EXPECT_EQ(grads[i].defined(), decoder) << model.params()[i].spec.name;
  }
  ModelConfig text_only = config;
  text_only.tower.type = "none";
  text_only.taps = {};
  Vlm language(text_only, make_single_groups(), at::kFloat, at::kCPU);
  for (Param& param : language.params()) {
    at::NoGradGuard no_grad;
    param.value.copy_(find_param(model.params(), param.spec.name).value);
  }
  EXPECT_TRUE(bit_equal(forward(language, row.input), forward(model, row.input)));
}

TEST(Vlm, AMicroBatchWithoutTokensGivesZeroGradients) {
  const ModelConfig config = tiny_config();
  Vlm model(config, make_single_groups(), at::kFloat, at::kCPU);
  randomise(model, 8);
  TinyRow row = tiny_row(config, 24, false, at::kFloat);
  row.input.tokens_T = row.input.tokens_T.slice(0, 0, 0);
  row.input.position_3T = row.input.position_3T.slice(1, 0, 0);
  row.input.row_starts = row.input.row_starts.slice(0, 0, 1);
  row.targets_T = row.targets_T.slice(0, 0, 0);
  row.weight_T = row.weight_T.slice(0, 0, 0);
  for (const Recompute& how : {Recompute{}, {.every = 1}, {.every = 1, .keep = Keep::kResults, .offload = true}}) {
    model.set_execution({.recompute = how});
    const auto grads = gradients(model, row);
    for (size_t i = 0; i < grads.size(); ++i) {
      const float sum = grads[i].defined() ? grads[i].abs().sum().item<float>() : 0;
      EXPECT_EQ(sum, 0) << model.params()[i].spec.name;
    }
  }
}

TEST(Vlm, NamesWhatDoesNotFit) {
  const ModelConfig config = tiny_config();
  Vlm model(config, make_single_groups(), at::kFloat, at::kCPU);
  randomise(model, 7);
  const TinyRow row = tiny_row(config, 48, true, at::kFloat);
  ModelInput input = row.input;
  input.vision_index_M = row.input.vision_index_M.slice(0, 1);
  EXPECT_ERROR(error_of([&] { model.forward(input); }),
               ErrorKind::kShape,
               "vision tokens: got 11 from the pictures, expected 10");
  input = row.input;
  input.grid_I3 = row.input.grid_I3.slice(0, 1);
  EXPECT_ERROR(error_of([&] { model.forward(input); }), ErrorKind::kShape, "pixels: got [44, 96]");
  input = row.input;
  input.grid_I3 = row.input.grid_I3.clone();
  input.grid_I3[0][1] = 3;
  EXPECT_ERROR(error_of([&] { model.forward(input); }), ErrorKind::kShape, "picture grid: got 1 x 3 x 6");
  input = row.input;
  input.tokens_T = row.input.tokens_T.clone();
  input.tokens_T[0] = 67;
  EXPECT_ERROR(error_of([&] { model.forward(input); }), ErrorKind::kShape, "token id: got ");
  input = row.input;
  input.position_3T = row.input.position_3T.slice(1, 1);
  EXPECT_ERROR(error_of([&] { model.forward(input); }), ErrorKind::kShape, "positions: got [3, 47], expected [3, 48]");
  ModelConfig unknown = config;
  unknown.tower.type = "siglip2";
  EXPECT_ERROR(error_of([&] { Vlm(unknown, make_single_groups(), at::kFloat, at::kCPU); }),
               ErrorKind::kConfig,
               "model.tower.type: got siglip2, expected one of [qwen3vl_vit, none]");
  unknown = config;
  unknown.family = "llava";
  EXPECT_ERROR(error_of([&] { Vlm(unknown, make_single_groups(), at::kFloat, at::kCPU); }),
               ErrorKind::kConfig,
               "expected one of [qwen3_vl");
}

TEST(Registry, ListsWhatItKnows) {
  EXPECT_EQ(known_towers(), (std::vector<std::string>{"qwen3vl_vit", "none"}));
  EXPECT_EQ(known_connectors(), (std::vector<std::string>{"merger_mlp"}));
  EXPECT_EQ(known_decoders(), (std::vector<std::string>{"qwen3_dense", "qwen3_moe"}));
}

int64_t num_parameters(const std::string& shape) {
  const ModelConfig config = read_model_config(HANOK_SOURCE_DIR "/configs/model/" + shape + ".yaml");
  const Vlm model(config, make_single_groups(), at::kBFloat16, at::kMeta);
  int64_t count = 0;
  for (const Param& param : model.params()) count += param.value.numel();
  return count;
}

// As transformers 5.17 counts them on its meta device (tests/oracle/model.py compares live).
TEST(Shapes, HaveTheParameterCountsOfTheReleasedModels) {
  EXPECT_EQ(num_parameters("qwen3vl_2b"), 2127532032);
  EXPECT_EQ(num_parameters("qwen3vl_4b"), 4437815808);
  EXPECT_EQ(num_parameters("qwen3vl_8b"), 8767123696);
  EXPECT_EQ(num_parameters("qwen3vl_32b"), 33357390064);
}

TEST(Shapes, TheDemonstrationModelIsCutOverOneTwoAndFourRanks) {
  const ModelConfig config = read_model_config(HANOK_SOURCE_DIR "/configs/model/qwen3vl_demo.yaml");
  for (const int tp : {1, 2, 4})
    run_on_threads(tp, [&](World& world) {
      const Vlm model(config, make_groups(world, Mesh({.tp = tp}), true), at::kFloat, at::kMeta);
      EXPECT_EQ(model.config().taps, config.taps);
    });
}

}  // namespace
}  // namespace hanok
