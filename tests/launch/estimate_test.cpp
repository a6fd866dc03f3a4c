// What `plan` says of weights, gradients and optimizer, against what is allocated; which settings it proposes.
#include "launch/estimate.h"

#include <gtest/gtest.h>

#include "configs/schema/check.h"
#include "configs/schema/read.h"
#include "parallel/grad_sync.h"
#include "tests/launch/planned_run.h"
#include "tests/model/tiny.h"
#include "tests/support/errors.h"
#include "trainer/freeze.h"
#include "trainer/optimizer.h"
#include "trainer/run_stages.h"

namespace hanok {
namespace {

TEST(Estimate, WeightsGradientsAndOptimizerAreWhatIsAllocatedOnEveryRank) {
  for (const auto& [trainable, dtype] : {std::pair{"**", "float32"}, std::pair{"decoder.**", "bfloat16"}}) {
    StageConfig stage;
    stage.trainable = {trainable};
    stage.optimizer.grad_dtype = dtype;
    run_on_threads(4, [&](World& world) {
      const Groups groups = make_groups(world, Mesh({.dp = 2, .tp = 2}), true);
      Vlm model(tiny_config(), groups, at::kBFloat16, at::kCPU);
      randomise(model, 1);
      freeze(model.params(), stage);
      GradSync grads(model.params(), groups, stage.optimizer.grad_dtype == "bfloat16" ? at::kBFloat16 : at::kFloat);
      AdamW optimizer(stage.optimizer, model.params(), grads);
      double weights = 0, flat = 0;
      for (const Param& param : model.params()) {
        if (param.trainable)
          flat = static_cast<double>(param.value.storage().nbytes());  // one buffer holds them all
        else
          weights += static_cast<double>(param.value.storage().nbytes());
      }
      EXPECT_EQ(weight_bytes(model.params(), groups), weights + flat);
      EXPECT_EQ(gradient_bytes(model.params(), groups, stage.optimizer),
                static_cast<double>(grads.shard().storage().nbytes()));  // the shard is a view of the whole buffer
      EXPECT_EQ(optimizer_bytes(model.params(), groups),
                static_cast<double>(optimizer.master().nbytes() + optimizer.first_moment().nbytes() +
                                    optimizer.second_moment().nbytes()));
    });
  }
}

Estimate estimate_on(const RunConfig& config, const ParallelConfig& layout, const GpuConfig& gpu) {
  const StageConfig& stage = config.stages[0];
  return estimate(config, stage, plan_model(config, stage, layout, &gpu), supposed_by_default(config), &gpu);
}

TEST(Estimate, AnEightBillionModelNeedsSixteenBytesAParameterAndMore) {
  const RunConfig config = run_of("qwen3vl_8b", 2);
  const auto gpus = read_gpus(HANOK_SOURCE_DIR "/configs/gpu");
  const GpuConfig& h200 = find_gpu(gpus, "h200");
  const Estimate one = estimate_on(config, {.dp = 1}, h200), eight = estimate_on(config, {.dp = 8}, h200);
  EXPECT_NEAR(one.always_bytes(), 8.767e9 * (2 + 4 + 12), 1.5e9);
  EXPECT_NEAR(eight.always_bytes(), 8.767e9 * (2 + 4 + 12.0 / 8), 1.5e9);  // ZeRO-1 cuts the optimizer only
  EXPECT_FALSE(fits(one, h200));
  EXPECT_NEAR(one.flops.sum().total() / eight.flops.sum().total(), 1, 1e-12);
  EXPECT_GT(one.seconds->total(), 4 * eight.seconds->total());
}

TEST(Estimate, ContextRanksShareRowsAndPictures) {
  RunConfig config = run_of("qwen3vl_8b", 2);
  config.stages[0].seq_len = 32768;
  config.stages[0].rows_per_micro_batch = 1;
  const auto gpus = read_gpus(HANOK_SOURCE_DIR "/configs/gpu");
  const GpuConfig& h200 = find_gpu(gpus, "h200");
  const auto kept = [](const Estimate& e) {
    double sum = 0;
    for (const Amount& amount : e.kept) sum += amount.bytes;
    return sum;
  };
  const Estimate one = estimate_on(config, {.dp = 8}, h200);
  for (const char* way : {"gather", "ring", "heads"}) {
    config.stages[0].parallel.context = way;
    const Estimate eight = estimate_on(config, {.cp = 8}, h200);
    EXPECT_EQ(eight.flops.sum().total(), one.flops.sum().total()) << way;
    EXPECT_EQ(eight.micro_batches, 8 * one.micro_batches) << way;
    EXPECT_GT(kept(eight), kept(one) / 8) << way;                       // keys and values once more, or the result
    EXPECT_LT(kept(eight), 1.15 * kept(one) / 8) << way;                // but little beside the rest
    EXPECT_NEAR(eight.always_bytes(), one.always_bytes(), 1e9) << way;  // optimizer shards lie over dp x cp
    EXPECT_GT(eight.seconds->context_parallel, 0) << way;
    EXPECT_EQ(one.seconds->context_parallel, 0) << way;
  }
}

TEST(Estimate, RecomputationKeepsLessAndRunsMore) {
  RunConfig config = run_of("qwen3vl_8b", 2);
  const auto gpus = read_gpus(HANOK_SOURCE_DIR "/configs/gpu");
  const GpuConfig& h200 = find_gpu(gpus, "h200");
  const Estimate none = estimate_on(config, {.dp = 8}, h200);
  config.stages[0].recompute = "full";
  const Estimate full = estimate_on(config, {.dp = 8}, h200);
  EXPECT_LT(full.peak_bytes, none.peak_bytes - 20e9);
  EXPECT_GT(full.seconds->matrices, 1.2 * none.seconds->matrices);
  EXPECT_EQ(full.flops.sum().total(), none.flops.sum().total());
}

TEST(Estimate, EverySuggestionFitsAndIsAllowed) {
  RunConfig config = run_of("qwen3vl_8b", 2);
  const auto gpus = read_gpus(HANOK_SOURCE_DIR "/configs/gpu");
  for (const char* kind : {"h200", "h100", "a100-40"}) {
    const GpuConfig& gpu = find_gpu(gpus, kind);
    const auto suggestions = suggest(config, config.stages[0], {.dp = 1}, supposed_by_default(config), gpu);
    EXPECT_EQ(suggestions.size(), 3u) << kind;
    for (const Suggestion& s : suggestions) {
      EXPECT_TRUE(fits(s.estimate, gpu)) << kind;
      EXPECT_FALSE(s.sets.empty());
    }
  }
}

TEST(Estimate, ACardWithoutBfloat16ComputesInFloat32) {
  const RunConfig config = run_of("qwen3vl_8b", 2);
  const auto gpus = read_gpus(HANOK_SOURCE_DIR "/configs/gpu");
  const Estimate e = estimate_on(config, {.dp = 1}, find_gpu(gpus, "t4"));
  EXPECT_EQ(e.dtype, at::kFloat);
  EXPECT_EQ(e.attention, "memory-efficient");
}

TEST(Gpu, KindsAreFoundByFileAliasAndDriverName) {
  const auto gpus = read_gpus(HANOK_SOURCE_DIR "/configs/gpu");
  EXPECT_EQ(gpus.size(), 10u);
  EXPECT_EQ(find_gpu(gpus, "A100").key, "a100-80");
  EXPECT_EQ(find_gpu(gpus, "NVIDIA H200").key, "h200");
  EXPECT_EQ(find_gpu(gpus, "4090").key, "rtx4090");
  EXPECT_EQ(match_gpu(gpus, "NVIDIA A100-SXM4-40GB", 39.4)->key, "a100-40");
  EXPECT_EQ(match_gpu(gpus, "NVIDIA GeForce GTX 1080", 8), nullptr);
  EXPECT_ERROR(error_of([&] { find_gpu(gpus, "h20o"); }), ErrorKind::kConfig, "did you mean h200?");
  EXPECT_ERROR(error_of([&] { find_gpu(gpus, "voodoo2"); }), ErrorKind::kConfig, "rtx4090");
}

}  // namespace
}  // namespace hanok
