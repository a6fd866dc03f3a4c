#include "trainer/step.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/graph_task.h>

#include <cmath>
#include <set>

#include "base/error.h"
#include "model/cost.h"
#include "tests/equivalence/material.h"
#include "tests/parallel/forwarding_comm.h"
#include "trainer/freeze.h"
#include "trainer/run_stages.h"
#include "trainer/step_report.h"

namespace hanok {
namespace {

/// A small model that learns, with its parts in reach.
struct Bench {
  explicit Bench(std::vector<std::string> trainable = {"**"}) : model(small_model(true), groups, at::kFloat, at::kCPU) {
    at::set_num_threads(1);
    stage.trainable = std::move(trainable);
    initialise(model, 11);
    freeze(model.params(), stage);
    grads = std::make_unique<GradSync>(model.params(), groups, at::kFloat);
    optimizer = std::make_unique<AdamW>(stage.optimizer, model.params(), *grads);
  }
  StepResult step(const std::vector<Batch>& batches, double lr = 1e-3) {
    Learner learner{stage, model, *grads, *optimizer, *objective};
    return run_step(learner, batches, lr);
  }
  std::vector<Tensor> values() const {
    std::vector<Tensor> out;
    for (const Param& param : model.params()) out.push_back(param.value.detach().clone());
    return out;
  }
  bool unchanged_since(const std::vector<Tensor>& before) const {
    for (size_t i = 0; i < before.size(); ++i)
      if (!at::equal(before[i], model.params()[i].value.detach())) return false;
    return true;
  }

  const Groups groups = make_single_groups();
  StageConfig stage;
  Vlm model;
  std::unique_ptr<GradSync> grads;
  std::unique_ptr<AdamW> optimizer;
  const std::unique_ptr<Objective> objective = make_objective("next_token");
};

std::vector<Batch> batches(std::vector<int64_t> indices) {
  Row row;
  for (const int64_t index : indices) row.push_back({0, index});
  return batches_of(real_samples(), {row}, 1, small_batches(1));
}

/// Notes of every operation whether it was asked for in the middle of a backward.
class NotingComm : public ForwardingComm {
 public:
  NotingComm(std::shared_ptr<Comm> comm, std::vector<std::pair<char, bool>>& notes)
      : ForwardingComm(std::move(comm)), notes_(notes) {}
  void all_gather(Tensor& out, const Tensor& shard) override {
    note('g');
    ForwardingComm::all_gather(out, shard);
  }
  void reduce_scatter(Tensor& shard, const Tensor& in) override {
    note('r');
    ForwardingComm::reduce_scatter(shard, in);
  }

 private:
  void note(char what) { notes_.emplace_back(what, torch::autograd::get_current_graph_task_id() != -1); }
  std::vector<std::pair<char, bool>>& notes_;
};

TEST(Step, SumsLeaveInTheMiddleOfTheLastBackwardAndWeightsComeUnderTheNextForward) {
  for (const char* recompute : {"none", "full"}) {
    run_on_threads(2, [&](World& world) {
      Groups groups = make_groups(world, Mesh({.dp = 2}), false);
      std::vector<std::pair<char, bool>> notes;
      groups.grad = std::make_shared<NotingComm>(groups.grad, notes);
      StageConfig stage;
      stage.recompute = recompute;
      Vlm model(small_model(true), groups, at::kFloat, at::kCPU);
      initialise(model, 11);
      freeze(model.params(), stage);
      GradSync grads(model.params(), groups, {.overlap = true, .bucket_elements = 1});
      Execution execution{.recompute = recompute_of(stage)};
      std::vector<int64_t> gathered_before_use;
      execution.before_use = [&](const std::vector<Tensor>& weights) {
        grads.await_values(weights);
        gathered_before_use.push_back(std::count(notes.begin(), notes.end(), std::pair{'g', false}));
      };
      model.set_execution(execution);
      AdamW optimizer(stage.optimizer, model.params(), grads);
      const auto objective = make_objective("next_token");
      Learner learner{stage, model, grads, optimizer, *objective};
      // A micro-batch without a picture is the last of one rank: the tower gets no gradient there.
      std::vector<Batch> of_step = batches({0, 64});
      for (Batch& batch : batches({groups.rank == 0 ? 70 : 1, 65})) of_step.push_back(std::move(batch));
      run_step(learner, of_step, 1e-3);
      const auto buckets = static_cast<int64_t>(grads.own_weights().size());
      const auto in_backward = std::count(notes.begin(), notes.end(), std::pair{'r', true});
      const auto at_end = std::count(notes.begin(), notes.end(), std::pair{'r', false});
      EXPECT_EQ(in_backward + at_end, buckets) << recompute;
      EXPECT_GE(in_backward, groups.rank == 0 ? buckets / 3 : buckets - 1) << recompute << " of " << buckets;
      EXPECT_EQ(std::count(notes.begin(), notes.end(), std::pair{'g', false}), 0) << "nobody has asked for weights yet";
      gathered_before_use.clear();
      run_step(learner, of_step, 1e-3);
      // Layer by layer, not all at once.
      EXPECT_GT(gathered_before_use.front(), 0);
      EXPECT_LT(gathered_before_use.front(), gathered_before_use.back());
      EXPECT_EQ(gathered_before_use.back(), buckets);
    });
  }
}

TEST(Step, LossFallsOverSteps) {
  Bench bench;
  const double first = bench.step(batches({0, 64, 65})).loss.item<double>();
  for (int i = 0; i < 5; ++i) bench.step(batches({0, 64, 65}));
  EXPECT_LT(bench.step(batches({0, 64, 65})).loss.item<double>(), first);
  EXPECT_EQ(bench.optimizer->num_steps(), (AppliedSteps{7, 7}));
}

TEST(Step, ANonFiniteGradientChangesNothing) {
  Bench bench;
  bench.step(batches({0, 64}));
  std::vector<Batch> poisoned = batches({0, 64});
  poisoned[0].pixels_PC.fill_(NAN);
  const std::vector<Tensor> before = bench.values();
  const StepResult result = bench.step(poisoned);
  EXPECT_FALSE(result.applied.item<bool>());
  EXPECT_TRUE(bench.unchanged_since(before));
  EXPECT_EQ(bench.optimizer->num_steps(), (AppliedSteps{1, 1}));
  EXPECT_TRUE(bench.step(batches({0, 64})).applied.item<bool>());
  EXPECT_FALSE(bench.unchanged_since(before));
}

TEST(Step, WithoutAnyLabelNothingIsAppliedAndTheLossIsZero) {
  Bench bench;
  std::vector<Sample> samples = real_samples();
  for (Sample& sample : samples) sample.labels.clear();
  const std::vector<Tensor> before = bench.values();
  for (const auto& unlabelled : {batches_of(samples, {{{0, 0}, {0, 64}}}, 1, small_batches(1)), std::vector<Batch>{}}) {
    const StepResult result = bench.step(unlabelled);
    EXPECT_EQ(result.loss.item<double>(), 0);
    EXPECT_FALSE(result.applied.item<bool>());
  }
  EXPECT_TRUE(bench.unchanged_since(before));
}

TEST(Step, ABatchThatCannotReachWhatTrainsGivesALossButNoGradient) {
  Bench bench({"tower.**"});
  const StepResult result = bench.step(batches({64, 65}));  // texts only
  EXPECT_GT(result.loss.item<double>(), 1);
  EXPECT_EQ(result.grad_norm.item<double>(), 0);
}

/// Names of parameters whose values are not those before.
std::set<std::string> changed_parts(const ParamTable& params, const std::vector<Tensor>& before) {
  std::set<std::string> parts;
  for (size_t i = 0; i < before.size(); ++i)
    if (!at::equal(before[i], params[i].value.detach()))
      parts.insert(params[i].spec.name.substr(0, params[i].spec.name.find('.')));
  return parts;
}

TEST(Step, WithoutPicturesTowerAndConnectorStayAsTheyAre) {  // as torch.optim leaves what has no gradient
  Bench bench;
  bench.step(batches({0, 64}));  // moments are not zero from here on
  std::vector<Tensor> before = bench.values();
  EXPECT_FALSE(bench.step(batches({64, 65})).has_pictures.item<bool>());
  EXPECT_EQ(changed_parts(bench.model.params(), before), std::set<std::string>{"decoder"});
  EXPECT_EQ(bench.optimizer->num_steps(), (AppliedSteps{2, 1}));
  before = bench.values();
  bench.step(batches({0, 64}));
  EXPECT_EQ(changed_parts(bench.model.params(), before), (std::set<std::string>{"connector", "decoder", "tower"}));
  EXPECT_EQ(bench.optimizer->num_steps(), (AppliedSteps{3, 2}));
}

TEST(Step, APictureOfAnotherRankIsAPictureOfTheStep) {
  run_on_threads(2, [&](World& world) {
    const Groups groups = make_groups(world, Mesh({.dp = 2}), false);
    const StageConfig stage;
    Vlm model(small_model(true), groups, at::kFloat, at::kCPU);
    initialise(model, 11);
    freeze(model.params(), stage);
    GradSync grads(model.params(), groups, at::kFloat);
    AdamW optimizer(stage.optimizer, model.params(), grads);
    const auto objective = make_objective("next_token");
    Learner learner{stage, model, grads, optimizer, *objective};
    std::vector<Tensor> before;
    for (const Param& param : model.params()) before.push_back(param.value.detach().clone());
    run_step(learner, batches({groups.rank == 0 ? 0 : 64}), 1e-3);
    grads.await_values();
    EXPECT_EQ(changed_parts(model.params(), before), (std::set<std::string>{"connector", "decoder", "tower"}));
    EXPECT_EQ(optimizer.num_steps(), (AppliedSteps{1, 1}));
  });
}

TEST(Step, FrozenPartsHaveNoGradientMemory) {
  const Bench all, connector({"connector.**"});
  EXPECT_LT(connector.grads->shard().numel(), all.grads->shard().numel() / 2);
  EXPECT_EQ(connector.optimizer->first_moment().numel(), connector.grads->shard().numel());
  for (const Param& param : connector.model.params())
    EXPECT_EQ(param.value.requires_grad(), param.spec.name.starts_with("connector.")) << param.spec.name;
}

TEST(Work, CountsRealTokensPairsAndPatches) {
  const std::vector<Sample> samples = real_samples();
  const Work work = work_of(batches_of(samples, {{{0, 0}, {0, 1}, {0, 64}}}, 1, small_batches(7)));
  const auto a = static_cast<double>(samples[0].tokens.size()), b = static_cast<double>(samples[1].tokens.size()),
             c = static_cast<double>(samples[64].tokens.size());
  EXPECT_EQ(work.tokens, a + b + c);
  EXPECT_EQ(work.token_pairs, a * a + b * b + c * c);
  EXPECT_EQ(work.patches, 16 + 24);
  EXPECT_EQ(work.patch_pairs, 16 * 16 + 24 * 24);
  EXPECT_EQ(work.labels, 2 + 2 + static_cast<double>(samples[64].num_label_tokens()));
}

TEST(Work, RanksOfTpCountTheirTokensOnce) {
  run_on_threads(4, [](World& world) {
    const Groups groups = make_groups(world, Mesh({.dp = 2, .tp = 2}), true);
    const StepReport all = share_report({.stop_requested = world.rank() == 3,
                                         .work = {.tokens = 10.0 * (1 + groups.dp->rank())},
                                         .step_s = 1.0 + world.rank()},
                                        groups);
    EXPECT_TRUE(all.stop_requested);
    EXPECT_EQ(all.work.tokens, 30);
    EXPECT_EQ(all.step_s, 4);
  });
}

// The convention by hand, for the model of these tests: weights of every matrix times two.
TEST(Cost, FollowsMegatronsConvention) {
  const ModelConfig config = small_model(true);
  Vlm model(config, make_single_groups(), at::kFloat, at::kMeta);
  const Work work{.tokens = 100, .labels = 10, .token_pairs = 4000, .patches = 64, .patch_pairs = 1024};
  const double layer = 32 * (4 + 2 + 2) * 12 + 4 * 12 * 32 + 3 * 32 * 48;         // qkv, out, gate, up, down
  const double block = 32 * 96 + 32 * 32 + 2 * 32 * 48, patch = 3 * 2 * 64 * 32;  // qkv, out, mlp; patch embedding
  const double merger = 128 * 128 + 128 * 32;
  const double forward = 2 * 100 * 3 * layer + 2 * 10 * 263 * 32 +
                         3 * 2 * 4000 * 48 +                                 // decoder, head, causal attention
                         2 * 64 * (2 * block + patch) + 2 * 4 * 1024 * 32 +  // tower
                         2 * 16 * 2 * merger;                                // merger and one tap
  EXPECT_NEAR(model_flops(config, model.params(), work).forward, forward, 1);
  EXPECT_NEAR(model_flops(config, model.params(), work).total(), 3 * forward, 1);
}

TEST(Cost, FrozenPartsPayForTheirForwardAndForGradientsThatPassThem) {
  const ModelConfig config = small_model(false);
  Vlm model(config, make_single_groups(), at::kFloat, at::kMeta);
  const Work text{.tokens = 100, .labels = 10, .token_pairs = 4000};
  StageConfig stage;
  const auto backward_over_forward = [&](const std::string& trainable) {
    stage.trainable = {trainable};
    freeze(model.params(), stage);
    const Flops flops = model_flops(config, model.params(), text);
    return flops.backward / flops.forward;
  };
  EXPECT_DOUBLE_EQ(backward_over_forward("**"), 2);
  const double below = backward_over_forward("connector.**");  // every decoder matrix passes gradients on, none trains
  EXPECT_GT(below, 1);
  EXPECT_LT(below, 1.3);  // attention cores have no weights: their backward is whole
  EXPECT_LT(backward_over_forward("decoder.head.**"), 0.3);
}

}  // namespace
}  // namespace hanok
