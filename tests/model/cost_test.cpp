// Bytes that activation_bytes() says, against what libtorch really holds: every allocation is counted.
#include "model/cost.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "configs/schema/read.h"
#include "model/activations.h"
#include "parallel/plan.h"
#include "tests/model/tiny.h"
#include "tests/support/counting_allocator.h"

namespace hanok {
namespace {

CountingAllocator& cpu() {
  static auto* allocator = new CountingAllocator(c10::DeviceType::CPU);  // tensors of other statics outlive main
  return *allocator;
}

/// Wide enough that a few numbers a segment do not matter.
ModelConfig small_config(bool tied) {
  ModelConfig config = tiny_config();
  config.tower.depth = 3;
  config.tower.hidden = 64;
  config.tower.ffn = 144;
  config.decoder.hidden = 96;
  config.decoder.ffn = 272;
  config.decoder.head_dim = 24;
  config.decoder.mrope_section = {4, 4, 4};
  config.decoder.vocab = 611;
  config.decoder.tied = tied;
  config.taps = {0, 2};
  return config;
}

struct Measured {
  double kept, peak;
};

/// 400 tokens; with pictures 165 of them are two pictures.
TinyRow row_of(const ModelConfig& config, bool pictures) {
  TinyRow row = tiny_row(config, 400, false, at::kFloat);
  if (!pictures) return row;
  constexpr int64_t kPatches = 20 * 30 + 6 * 10;
  row.input.grid_I3 = at::tensor({1, 20, 30, 1, 6, 10}, at::kLong).view({2, 3});
  row.input.pixels_PC = at::randn({kPatches, row.input.pixels_PC.size(1)});
  row.input.vision_index_M = at::arange(50, 50 + kPatches / 4, at::kLong);
  return row;
}

MicroBatch batch_of(const TinyRow& row) {
  return {.tokens = row.input.tokens_T.size(0),
          .labels = row.targets_T.ne(-100).sum().item<int64_t>(),
          .patches = row.input.pixels_PC.size(0),
          .vision_tokens = row.input.vision_index_M.size(0)};
}

void train_only(Vlm& model, const std::string& glob) {
  for (Param& param : model.params()) {
    param.trainable = glob_match(glob, param.spec.name);
    param.value.set_requires_grad(param.trainable);
    param.value.mutable_grad() = param.trainable ? at::zeros_like(param.value) : Tensor();
  }
}

/// Bytes alive between forward and backward, and the most at any time of both; weights, their gradients and the input
/// left out.
Measured measure(Vlm& model, const TinyRow& row) {
  weighted_loss(model, model.forward(row.input), row);  // what is made at first use is made
  const double before = static_cast<double>(cpu().live());
  cpu().restart_peak();
  const ModelOutput y = model.forward(row.input);
  Tensor loss = weighted_loss(model, y, row);
  const double kept = static_cast<double>(cpu().live()) - before;
  if (loss.requires_grad()) loss.backward();
  return {kept, static_cast<double>(cpu().peak()) - before};
}

struct Case {
  const char* name;
  int64_t every;
  bool pictures, tied;
  const char* trainable;
  at::ScalarType dtype = at::kFloat;
  Keep keep = Keep::kInput;
  Recompute recompute() const { return {.every = every, .keep = keep}; }
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

class KeptBytes : public testing::TestWithParam<Case> {};

TEST_P(KeptBytes, EqualWhatAutogradHolds) {
  const Case& c = GetParam();
  cpu();
  const ModelConfig config = small_config(c.tied);
  Vlm model(config, make_single_groups(), c.dtype, at::kCPU);
  randomise(model, 1);
  train_only(model, c.trainable);
  model.set_execution({.recompute = c.recompute()});
  const TinyRow row = row_of(config, c.pictures);
  const Measured real = measure(model, row);
  const ActivationBytes said =
      activation_bytes(config, model.params(), model.groups(), batch_of(row), c.recompute(), KernelSet{});
  EXPECT_NEAR(said.kept() / real.kept, 1, 0.02) << "said " << said.kept() << ", held " << real.kept;
  EXPECT_NEAR((said.peak - said.input) / real.peak, 1, 0.1) << "said " << said.peak << ", peaked at " << real.peak;
}

INSTANTIATE_TEST_SUITE_P(
    Cases,
    KeptBytes,
    testing::Values(Case{"text", 0, false, true, "**"},
                    Case{"pictures", 0, true, true, "**"},
                    Case{"text_recomputed", 1, false, true, "**"},
                    Case{"pictures_recomputed", 1, true, false, "**"},
                    Case{"every_second", 2, true, false, "**"},
                    Case{"text_selective", 1, false, true, "**", at::kFloat, Keep::kResults},
                    Case{"pictures_selective", 1, true, false, "**", at::kFloat, Keep::kResults},
                    Case{"every_second_selective", 2, true, false, "**", at::kFloat, Keep::kResults},
                    Case{"bfloat16_selective", 1, true, true, "**", at::kBFloat16, Keep::kResults},
                    Case{"decoder_only_selective", 1, true, false, "decoder.**", at::kFloat, Keep::kResults},
                    Case{"text_but_attention", 1, false, true, "**", at::kFloat, Keep::kAttention},
                    Case{"pictures_but_attention", 1, true, false, "**", at::kFloat, Keep::kAttention},
                    Case{"every_second_but_attention", 2, true, false, "**", at::kBFloat16, Keep::kAttention},
                    Case{"connector_only", 0, true, false, "connector.**"},
                    Case{"connector_only_recomputed", 1, true, false, "connector.**"},
                    Case{"decoder_only", 0, true, false, "decoder.**"},
                    Case{"upper_half", 0, true, false, "decoder.layers.2.**"},
                    Case{"nothing_upstream", 0, false, false, "connector.**"},
                    Case{"bfloat16", 0, true, true, "**", at::kBFloat16}),
    [](const auto& info) { return info.param.name; });

ModelConfig expert_config() {
  ModelConfig config = small_config(false);
  config.decoder.type = "qwen3_moe";
  config.decoder.experts = 8;
  config.decoder.experts_per_token = 3;
  config.decoder.expert_ffn = 80;
  return config;
}

TEST(KeptBytes, OfExpertsEqualWhatAutogradHolds) {
  cpu();
  const ModelConfig config = expert_config();
  Vlm model(config, make_single_groups(), at::kFloat, at::kCPU);
  randomise(model, 1);
  train_only(model, "**");
  const TinyRow row = row_of(config, false);
  for (const Recompute& how :
       {Recompute{}, {.every = 1, .keep = Keep::kResults}, {.every = 1, .keep = Keep::kAttention}, {.every = 1}}) {
    model.set_execution({.recompute = how});
    const Measured real = measure(model, row);
    const ActivationBytes said =
        activation_bytes(config, model.params(), model.groups(), batch_of(row), how, KernelSet{});
    EXPECT_NEAR(said.kept() / real.kept, 1, 0.02) << "said " << said.kept() << ", held " << real.kept;
    EXPECT_NEAR((said.peak - said.input) / real.peak, 1, 0.15) << "said " << said.peak << ", peaked at " << real.peak;
  }
}

// The middle rank holds the MLP of the first layer and the attention of the second one.
TEST(KeptBytes, OfHalvesOfLayersEqualWhatAutogradHolds) {
  cpu();
  const ModelConfig config = small_config(false);
  const TinyRow row = row_of(config, false);
  const Groups groups = make_planned_groups(Mesh({.pp = 3}), 1, false);
  for (const Recompute& how :
       {Recompute{}, {.every = 1, .keep = Keep::kResults}, {.every = 1, .keep = Keep::kAttention}, {.every = 1}}) {
    Vlm model(config, groups, at::kFloat, at::kCPU, {.pp_layers = {0.5, 1, 1.5}});
    randomise(model, 1);
    train_only(model, "**");
    model.set_execution({.recompute = how});
    const auto forward = [&] {
      return model.run_piece(1, row.input, {at::randn({400, config.decoder.hidden}).set_requires_grad(true)});
    };
    forward();  // what is made at first use is made
    const double before = static_cast<double>(cpu().live());
    const std::vector<Tensor> handed_on = forward();
    const double held = static_cast<double>(cpu().live()) - before;
    MicroBatch batch = batch_of(row);
    batch.trains_before = true;
    const ActivationBytes said = activation_bytes(config, model.params(), groups, batch, how, KernelSet{});
    EXPECT_NEAR(said.kept() / held, 1, 0.02) << "said " << said.kept() << ", held " << held;
    EXPECT_EQ(said.sublayers[0] + said.sublayers[3] + said.sublayers[4] + said.sublayers[5], 0);
    EXPECT_NEAR(said.decoder_share(1, 2) + said.decoder_share(2, 3), 1, 1e-12);
  }
}

/// The rows of a text that this rank of cp holds.
TinyRow own_rows(const TinyRow& row, const Groups& groups) {
  TinyRow own = row;
  own.input.cut = cut_rows(row.input.row_starts, groups.cp->size());
  if (!own.input.cut.is_cut()) return own;
  const Tensor rows = own.input.cut.rows_of(groups.cp->rank());
  own.input.tokens_T = row.input.tokens_T.index_select(0, rows);
  own.input.position_3T = row.input.position_3T.index_select(1, rows);
  own.targets_T = row.targets_T.index_select(0, rows);
  own.weight_T = row.weight_T.index_select(0, rows);
  return own;
}

/// Both ranks' bytes together: they live in one process.
double held_by_two_ranks(const ModelConfig& config,
                         const TinyRow& whole,
                         const MeshShape& shape,
                         bool sequence,
                         double& said,
                         ContextWay way = ContextWay::kAuto) {
  static std::atomic<int64_t> before;
  double held = 0;
  std::mutex mutex;
  run_on_threads(2, [&](World& world) {
    const Groups groups = make_groups(world, Mesh(shape), sequence);
    Vlm model(config, groups, at::kFloat, at::kCPU);
    model.set_execution({.context = way});
    randomise(model, 1);
    train_only(model, "**");
    const TinyRow row = own_rows(whole, groups);
    groups.control->barrier();
    if (world.rank() == 0) before = cpu().live();
    groups.control->barrier();
    const ModelOutput y = model.forward(row.input);
    const Tensor loss = weighted_loss(model, y, row);
    groups.control->barrier();
    if (world.rank() == 0) held = static_cast<double>(cpu().live() - before);
    groups.control->barrier();
    const std::lock_guard lock(mutex);
    said += activation_bytes(config, model.params(), groups, batch_of(row), {}, KernelSet{.context = way}).kept();
  });
  return held;
}

TEST(KeptBytes, OverTwoRanksOfTpEqualWhatAutogradHolds) {
  cpu();
  const ModelConfig config = small_config(false);
  const TinyRow row = row_of(config, true);
  for (const bool sequence : {true, false}) {
    double said = 0;
    const double held = held_by_two_ranks(config, row, {.tp = 2}, sequence, said);
    EXPECT_NEAR(said / held, 1, 0.02) << (sequence ? "rows cut: " : "rows whole: ") << said << ", held " << held;
  }
}

TEST(KeptBytes, OverTwoRanksOfCpEqualWhatAutogradHolds) {
  cpu();
  const ModelConfig config = small_config(false);
  const TinyRow row = row_of(config, false);
  for (const ContextWay way : {ContextWay::kGather, ContextWay::kRing, ContextWay::kHeads}) {
    double said = 0;
    const double held = held_by_two_ranks(config, row, {.cp = 2}, false, said, way);
    EXPECT_NEAR(said / held, 1, 0.02) << "way " << static_cast<int>(way) << ": said " << said << ", held " << held;
  }
}

TEST(KeptBytes, OfExpertsOverTwoRanksEqualWhatAutogradHolds) {
  cpu();
  const ModelConfig config = expert_config();
  const TinyRow row = row_of(config, false);
  for (const MeshShape& shape : {MeshShape{.dp = 2, .ep = 2}, {.dp = 2, .etp = 2}}) {
    double said = 0;
    const double held = held_by_two_ranks(config, row, shape, false, said);
    EXPECT_NEAR(said / held, 1, 0.02) << "ep " << shape.ep << ": said " << said << ", held " << held;
  }
}

// By hand, for three layers of width 96: a step of 10 tokens (6 labelled) in samples of 4 and 6.
TEST(Cost, PartsEqualAHandCount) {
  const ModelConfig config = small_config(false);
  Vlm model(config, make_single_groups(), at::kFloat, at::kMeta);
  const Work work{.tokens = 10, .labels = 6, .token_pairs = 16 + 36, .patches = 8, .patch_pairs = 64};
  const FlopsByPart flops = flops_by_part(config, model.params(), work, {.every = 2});
  const double layer = 96 * (4 + 2 + 2) * 24 + 4 * 24 * 96 + 3 * 96 * 272, block = 4 * 64 * 64 + 2 * 64 * 144;
  EXPECT_EQ(flops.decoder.forward, 2 * 10 * 3 * layer);
  EXPECT_EQ(flops.attention.forward, 3 * 2 * 52 * 96);
  EXPECT_EQ(flops.head.forward, 2 * 6 * 611 * 96);
  EXPECT_EQ(flops.tower.forward, 2 * 8 * (3 * block + 96 * 64));
  EXPECT_EQ(flops.tower_attention.forward, 3 * 4 * 64 * 64);
  EXPECT_EQ(flops.connector.forward, 2 * 2 * 3 * (256 * 256 + 256 * 96));
  EXPECT_EQ(flops.sum().backward, 2 * flops.sum().forward);
  // Layers 0 and 2 run twice, but for their last product.
  EXPECT_EQ(flops.decoder.again, 2 * 10 * 2 * (layer - 96 * 272));
  EXPECT_EQ(flops.tower_attention.again, 2 * 4 * 64 * 64);
  EXPECT_EQ(flops.head.again, 0);
  // Attention apart, the same runs twice where its results are kept.
  const FlopsByPart kept = flops_by_part(config, model.params(), work, {.every = 2, .keep = Keep::kAttention});
  EXPECT_EQ(kept.decoder.again, flops.decoder.again);
  EXPECT_EQ(kept.attention.again, 0);
  EXPECT_EQ(kept.tower_attention.again, 0);
  EXPECT_EQ(model_flops(config, model.params(), work).total(), flops.sum().total());
}

}  // namespace
}  // namespace hanok
