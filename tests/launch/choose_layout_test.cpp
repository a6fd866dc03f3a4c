// What `plan` says of time, and which layouts it chooses.
#include "launch/choose_layout.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "configs/schema/check.h"
#include "configs/schema/read.h"
#include "launch/estimate_time.h"
#include "tests/launch/planned_run.h"

namespace hanok {
namespace {

const GpuConfig& h200() {
  static const std::vector<GpuConfig> gpus = read_gpus(HANOK_SOURCE_DIR "/configs/gpu");
  return find_gpu(gpus, "h200");
}

Estimate estimate_of(const RunConfig& config, const StageConfig& stage, const Supposed& supposed = {}) {
  return estimate(config, stage, plan_model(config, stage, stage.parallel, &h200()), supposed, &h200());
}

// facts/floors.py: Qwen3-30B-A3B at 4,096 tokens, 13,011 tok/s a GPU are the published 299.35 TF within 0.4 %; and its
// 8B.
TEST(Plan, CountsFlopsAsPublishedFiguresDo) {
  const Work one{.tokens = 4096, .labels = 4096, .token_pairs = 4096.0 * 4096};
  for (const auto& [shape, linear, attention] : {std::tuple("qwen3_vl_30b_a3b", 18249940992.0, 4831838208.0),
                                                 std::tuple("qwen3vl_8b", 45408583680.0, 3623878656.0)}) {
    const RunConfig config = run_of(shape);
    const PlannedModel planned = plan_model(config, config.stages[0], {.dp = 1}, &h200());
    const FlopsByPart flops = flops_by_part(config.model, planned.model->whole(), one);
    EXPECT_EQ((flops.decoder.total() + flops.head.total()) / 4096, linear) << shape;
    EXPECT_EQ(flops.attention.total() / 4096, attention) << shape;
    EXPECT_EQ(flops.tower.total(), 0) << shape;
  }
}

TEST(Plan, ATokenMeetsAFewOfTheExperts) {
  const RunConfig moe = run_of("qwen3_vl_30b_a3b"), dense = run_of("qwen3vl_8b");
  const Estimate e = estimate_of(moe, moe.stages[0]), d = estimate_of(dense, dense.stages[0]);
  EXPECT_EQ(d.active, d.parameters);
  EXPECT_NEAR(e.parameters, 31.1e9, 0.1e9);
  EXPECT_NEAR(e.active, 3.9e9, 0.2e9);  // the vision parts counted
}

// 1,024 rows to an expert where four ranks send to it, 256 where each keeps all experts: products of such sizes run at
// half of the largest rate and more, and the larger ones are faster.
TEST(Plan, ExpertsAreMultipliedWithTheRowsOfAllRanksThatSend) {
  const RunConfig config = run_of("qwen3_vl_30b_a3b");
  StageConfig stage = config.stages[0];
  stage.rows_per_step = 16;
  const auto matrices = [&](int64_t ep) {
    stage.parallel = {.ep = ep, .dp = 4};
    return estimate_of(config, stage).seconds->matrices;
  };
  const Estimate all = estimate_of(config, stage);
  const double least = (all.flops.decoder.total() + all.flops.head.total()) / 4 / 790e12;
  EXPECT_GT(matrices(4), least);
  EXPECT_LT(matrices(4), 2 * least);
  EXPECT_LT(matrices(4), matrices(1));
}

// Rates are measured on kernels, whose backward makes five products where the forward makes two; model FLOPs count
// four.
TEST(Plan, AttentionsBackwardTakesWhatItsKernelsDo) {
  const RunConfig config = run_of("qwen3vl_8b");
  StageConfig stage = config.stages[0];
  stage.seq_len = 8192;  // where rates are those of the file
  stage.parallel = {.dp = 1};
  const Estimate e = estimate_of(config, stage);
  const double forward = e.flops.attention.forward / 1e12;
  const GpuAttention& rate = h200().attention_tf;
  EXPECT_NEAR(e.seconds->attention / (forward / rate.forward + 2.5 * forward / rate.backward), 1, 1e-9);
}

// What a sublayer takes is what the plan of one rank says of all of them.
TEST(Plan, SublayersTakeTheStepTogether) {
  const RunConfig config = run_of("qwen3vl_8b");
  StageConfig stage = config.stages[0];
  stage.parallel = {.dp = 1};
  const Estimate e = estimate_of(config, stage);
  const SublayerCosts costs = sublayer_seconds(config, stage, {}, h200());
  PassCosts sum = costs.before;
  for (const PassCosts& sublayer : costs.sublayers) sum += sublayer;
  sum += costs.after;
  const Estimate::Seconds& s = *e.seconds;
  EXPECT_EQ(costs.sublayers.size(), 72);
  EXPECT_NEAR(sum.all() * static_cast<double>(e.micro_batches) / (s.matrices + s.attention + s.memory), 1, 1e-9);
  EXPECT_GT(costs.sublayers[1].all(), 1.5 * costs.sublayers[0].all());
}

TEST(Plan, APipelineTakesItsFormula) {
  const PassCosts even{.forward = 1, .backward_input = 1, .backward_weight = 1};
  EXPECT_EQ(pipeline_span({}, 7, {even}, 0), 7 * 3);
  for (const int ranks : {2, 4, 8})
    for (const int m : {8, 16, 32}) {
      const std::vector<PassCosts> whole(ranks, even);
      EXPECT_EQ(pipeline_span({Schedule::k1F1B, ranks, 1}, m, whole, 0), 3 * (m + ranks - 1));
      EXPECT_NEAR(pipeline_span({Schedule::kZeroBubbleH1, ranks, 1}, m, whole, 0), 3 * m + ranks - 1, 1e-9);
      const std::vector<PassCosts> halves(2 * ranks, {.forward = 0.5, .backward_input = 0.5, .backward_weight = 0.5});
      EXPECT_EQ(pipeline_span({Schedule::kInterleaved, ranks, 2}, m, halves, 0), 3 * m + 1.5 * (ranks - 1));
      // Two schedules that differ in nothing take as long.
      EXPECT_EQ(pipeline_span({Schedule::kInterleaved, ranks, 1}, m, whole, 0),
                pipeline_span({Schedule::k1F1B, ranks, 1}, m, whole, 0));
    }
  // One slow piece holds all others up.
  std::vector<PassCosts> uneven(4, even);
  uneven[2] = {.forward = 2, .backward_input = 2, .backward_weight = 2};
  EXPECT_GE(pipeline_span({Schedule::k1F1B, 4, 1}, 32, uneven, 0), 32 * 6);
}

TEST(Plan, LessRecomputationTakesMoreMemoryAndLessTime) {
  const RunConfig config = run_of("qwen3vl_8b");
  struct Way {
    const char* recompute;
    bool offload;
  };
  const Way ways[] = {
      {"none", false}, {"selective", false}, {"all_but_attention", false}, {"full", false}, {"full", true}};
  for (const ParallelConfig& layout :
       {ParallelConfig{.dp = 8}, {.tp = 2, .dp = 4}, {.cp = 2, .dp = 4}, {.pp = 2, .dp = 4}}) {
    double bytes = 1e300, seconds = 0;
    for (const Way& way : ways) {
      StageConfig stage = config.stages[0];
      stage.rows_per_micro_batch = 2;
      stage.parallel = layout;
      stage.recompute = way.recompute;
      stage.offload = way.offload;
      const Estimate e = estimate_of(config, stage, supposed_by_default(config));
      EXPECT_LT(e.peak_bytes, bytes) << way.recompute << " on tp " << layout.tp << " pp " << layout.pp;
      EXPECT_GE(e.seconds->total(), seconds) << way.recompute << " on tp " << layout.tp << " pp " << layout.pp;
      EXPECT_EQ(e.on_host_bytes > 0, way.offload);
      bytes = e.peak_bytes;
      seconds = e.seconds->total();
    }
  }
}

TEST(Plan, OverlapHidesWhatTravels) {
  const RunConfig config = run_of("qwen3vl_8b");
  StageConfig stage = config.stages[0];
  stage.parallel.dp = 8;
  const Estimate hidden = estimate_of(config, stage);
  stage.parallel.overlap = false;
  const Estimate open = estimate_of(config, stage);
  EXPECT_LT(hidden.seconds->data_parallel, 0.2 * open.seconds->data_parallel);
  EXPECT_NEAR(open.seconds->data_parallel, open.seconds->gradients_travel + open.seconds->weights_travel, 1e-12);
}

TEST(Plan, LayoutsThatAreTheSameCostTheSame) {
  const RunConfig config = run_of("qwen3vl_8b");
  StageConfig automatic = config.stages[0], said = automatic;
  automatic.parallel = {.pp = 4, .dp = 2};
  said.parallel = automatic.parallel;
  for (const PieceRange& piece : cut_pieces(config.model, 4, {})) said.parallel.pp_layers.push_back(piece.layers());
  const Estimate a = estimate_of(config, automatic), b = estimate_of(config, said);
  EXPECT_EQ(a.seconds->total(), b.seconds->total());
  EXPECT_EQ(a.peak_bytes, b.peak_bytes);
}

TEST(Plan, AStepThatWasDoneIsSupposedAsItWas) {
  const RunConfig config = run_of("qwen3vl_8b");
  const StageConfig& stage = config.stages[0];
  const Supposed half{.picture_share = 0.5, .patches_per_picture = 1024};
  const PlannedModel planned = plan_model(config, stage, {.dp = 1}, &h200());
  const StepLoad load = load_of(config, stage, planned.groups, half);
  const Supposed found = supposed_of(config, stage, load.work);
  EXPECT_EQ(found.picture_share, 0.5);
  EXPECT_EQ(found.patches_per_picture, 1024);
  EXPECT_EQ(found.label_share, 1);
  EXPECT_EQ(found.sample_tokens, 4096);
  EXPECT_EQ(found.fill, 1);
}

TEST(ChooseLayout, WhatItChoosesFitsIsAllowedAndComesFastestFirst) {
  for (const char* shape : {"qwen3vl_8b", "qwen3_vl_30b_a3b"}) {
    const RunConfig config = run_of(shape);
    const StageConfig& stage = config.stages[0];
    for (const int gpus : {8, 64}) {
      const LayoutChoices found = choose_layouts(config, stage, gpus, supposed_by_default(config), h200());
      ASSERT_GE(found.best.size(), 3u) << shape << " on " << gpus;
      double seconds = 0;
      for (const LayoutChoice& choice : found.best) {
        const ParallelConfig& p = choice.stage.parallel;
        EXPECT_EQ(p.tp * p.pp * p.cp * p.dp, gpus);
        RunConfig changed = config;
        changed.stages = {choice.stage};
        EXPECT_TRUE(violations(changed, gpus).empty());
        EXPECT_TRUE(violations(config.model, p).empty());
        EXPECT_LE(choice.peak_bytes, 0.95 * h200().memory_gib * (1 << 30));
        EXPECT_GE(choice.seconds.total(), 0.95 * seconds);  // simpler ones first where times are nearly equal
        EXPECT_EQ(choice.stage.rows_per_step, stage.rows_per_step);
        EXPECT_FALSE(choice.why.empty());
        seconds = choice.seconds.total();
        // The estimate of the chosen settings says the same.
        const Estimate e = estimate_of(config, choice.stage, supposed_by_default(config));
        EXPECT_NEAR(e.seconds->total() / choice.seconds.total(), 1, 1e-9);
      }
    }
  }
}

TEST(ChooseLayout, ASmallGpuIsToldThatNothingFits) {
  const RunConfig config = run_of("qwen3_vl_235b_a22b");
  const std::vector<GpuConfig> gpus = read_gpus(HANOK_SOURCE_DIR "/configs/gpu");
  const LayoutChoices found = choose_layouts(config, config.stages[0], 2, {}, find_gpu(gpus, "t4"));
  EXPECT_TRUE(found.best.empty());
  EXPECT_GT(found.allowed, 0);
}

}  // namespace
}  // namespace hanok
