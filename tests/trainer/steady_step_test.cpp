// Steady steps on a GPU, packed rows with pictures: the host asks nothing of the device, and what it asks for late is
// what it would have been told at once.
#include <ATen/cuda/Sleep.h>
#include <c10/cuda/CUDAFunctions.h>
#include <gtest/gtest.h>

#include "base/upload.h"
#include "tests/equivalence/material.h"
#include "trainer/freeze.h"
#include "trainer/run_stages.h"
#include "trainer/step_scalars.h"

namespace hanok {
namespace {

/// While one lives, an operation that waits for the device is an error.
class NoWaiting {
 public:
  NoWaiting() { c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR); }
  ~NoWaiting() { c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED); }
};

ModelConfig model_with_even_heads() {
  ModelConfig config = small_model(true);
  config.decoder.head_dim = 16;
  config.decoder.mrope_section = {2, 3, 3};
  return config;
}

struct Bench {
  Bench(at::ScalarType dtype,
        const StageConfig& stage,
        const ModelConfig& config = model_with_even_heads(),
        int64_t bucket_elements = 0)
      : stage(stage), model(config, groups, dtype, at::kCUDA) {
    initialise(model, 11);
    freeze(model.params(), stage);
    GradSyncOptions options = gradient_options(stage);
    options.bucket_elements = bucket_elements;
    grads = std::make_unique<GradSync>(model.params(), groups, options);
    Execution execution{.recompute = recompute_of(stage)};
    execution.before_use = [this](const std::vector<Tensor>& weights) { grads->await_values(weights); };
    model.set_execution(execution);
    optimizer = std::make_unique<AdamW>(stage.optimizer, model.params(), *grads);
  }
  StepResult step(const std::vector<Batch>& batches) {
    Learner learner{stage, model, *grads, *optimizer, *objective, &copies};
    return run_step(learner, batches, 1e-3);
  }
  const Groups groups = make_single_groups();
  const StageConfig& stage;
  Vlm model;
  std::unique_ptr<GradSync> grads;
  std::unique_ptr<AdamW> optimizer;
  const std::unique_ptr<Objective> objective = make_objective("next_token");
  InputCopies copies{at::kCUDA};
};

/// Two micro-batches, of which the first has pictures; pinned as the loader's.
std::vector<Batch> batches() {
  BatchSpec spec = small_batches(1);
  spec.pin_memory = true;
  return batches_of(real_samples(), {{{0, 0}, {0, 1}, {0, 64}}, {{0, 65}, {0, 96}}}, 1, spec);
}

TEST(SteadyStep, NeverWaitsForTheDevice) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    for (const char* recompute : {"none", "selective", "all_but_attention", "full"}) {
      StageConfig stage;
      stage.recompute = recompute;
      Bench bench(dtype, stage);
      const std::vector<Batch> of_step = batches();
      for (int i = 0; i < 2; ++i) LateScalars(bench.step(of_step), bench.model.config().decoder).read();
      std::vector<LateScalars> late;
      std::vector<Tensor> losses;
      {
        const NoWaiting from_here_on;
        for (int i = 0; i < 4; ++i) {
          const StepResult result = bench.step(of_step);
          losses.push_back(result.loss);
          late.emplace_back(result, bench.model.config().decoder);
        }
      }
      for (size_t i = 0; i < late.size(); ++i) {
        EXPECT_EQ(late[i].read().loss, losses[i].item<double>()) << recompute;
        EXPECT_TRUE(late[i].read().applied);
      }
      EXPECT_LT(late.back().read().loss, late.front().read().loss);
    }
  }
}

/// While one lives, the same bits come of the same work.
class Deterministic {
 public:
  Deterministic() { at::globalContext().setDeterministicAlgorithms(true, true); }
  ~Deterministic() { at::globalContext().setDeterministicAlgorithms(false, false); }
};

// Updates that take far longer than it takes to read what they change: whoever does not ask for it reads the old
// values.
TEST(SteadyStep, WeightsThatAreUpdatedBesideAreNewWhereTheyAreAskedFor) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  ParamTable params;
  for (const char* name : {"first", "second"})
    params.push_back({.spec = {.name = name, .shape = {1000}},
                      .value = at::zeros({1000}, at::device(at::kCUDA).dtype(at::kBFloat16))});
  GradSync sync(params, make_single_groups(), {.overlap = true, .bucket_elements = 1});
  constexpr int64_t kCycles = 200'000'000;  // a tenth of a second
  const auto update_to = [&](int value) {
    sync.update_values([value](const WeightBlock& block) {
      at::cuda::sleep(kCycles);
      Tensor(block.weights).fill_(value);
    });
  };
  const auto is_all = [&](int param, int value) { return params[param].value.detach().eq(value).all(); };
  // Kernels are loaded when they are first used, which may wait for others.
  at::cuda::sleep(1);
  sync.update_values([](const WeightBlock& block) { Tensor(block.weights).fill_(0); });
  sync.await_values();
  ASSERT_TRUE(is_all(0, 0).item<bool>());
  update_to(7);
  const Tensor not_yet = is_all(0, 0);
  sync.await_values(std::vector<Tensor>{params[0].value});
  const Tensor first = is_all(0, 7), second_not_yet = is_all(1, 0);
  sync.await_values();
  const Tensor second = is_all(1, 7);
  // A step in which no forward asks and no backward reaches a weight: gradients become zero, but not while updates
  // read them.
  sync.shard().fill_(8);
  sync.update_values([&](const WeightBlock& block) {
    at::cuda::sleep(kCycles);
    Tensor(block.weights).copy_(sync.shard().narrow(0, block.shard_begin, block.weights.numel()));
  });
  sync.start();
  sync.finish();
  const Tensor after_finish = is_all(0, 8).logical_and(is_all(1, 8));
  EXPECT_TRUE(not_yet.item<bool>());
  EXPECT_TRUE(first.item<bool>());
  EXPECT_TRUE(second_not_yet.item<bool>());
  EXPECT_TRUE(second.item<bool>());
  EXPECT_TRUE(after_finish.item<bool>());
}

// With a vocabulary whose update is the larger part of a step.
TEST(SteadyStep, UpdatesBesideForwardsGiveTheSameBits) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  const Deterministic while_here;
  for (const bool tied : {false, true}) {
    for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
      ModelConfig config = model_with_even_heads();
      config.decoder.vocab = 1 << 19;
      config.decoder.tied = tied;
      std::vector<std::vector<Tensor>> weights;
      for (const bool overlap : {true, true, false}) {
        StageConfig stage;
        stage.parallel.overlap = overlap;
        constexpr int64_t kManyBuckets = 1 << 12;  // updated one after the other
        Bench bench(dtype, stage, config, kManyBuckets);
        const std::vector<Batch> of_step = batches();
        for (int i = 0; i < 8; ++i) bench.step(of_step);
        bench.grads->await_values();
        std::vector<Tensor>& all = weights.emplace_back();
        for (const Param& param : bench.model.params()) all.push_back(param.value.detach().clone());
        all.push_back(bench.optimizer->first_moment().clone());
      }
      for (size_t run = 1; run < weights.size(); ++run)
        for (size_t i = 0; i < weights[0].size(); ++i)
          EXPECT_TRUE(at::equal(weights[run][i], weights[0][i])) << tied << " " << dtype << " run " << run << " " << i;
    }
  }
}

TEST(SteadyStep, AWaitIsNoticed) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  const Tensor x = at::ones({4}, at::kCUDA);
  const NoWaiting from_here_on;
  EXPECT_THROW(x.sum().item<float>(), std::exception);
  EXPECT_THROW(x.nonzero(), std::exception);
  EXPECT_THROW(at::ones({4}).to(at::kCUDA), std::exception);
  EXPECT_NO_THROW(upload(at::ones({4}), x.device()));
}

}  // namespace
}  // namespace hanok
