#include "trainer/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/close.h"
#include "trainer/clip.h"

namespace hanok {
namespace {

Tensor scalar(double value) {
  return at::full({}, value, at::kFloat);
}
Tensor flag(bool value) {
  return at::full({}, value, at::kBool);
}

AdamWState random_state(int64_t n) {
  return {at::randn({n}), at::randn({n}) * 0.1, at::rand({n}) * 0.01};
}

/// The operations of torch.optim.AdamW one by one, in f64.
void adamw_reference(AdamWState& state,
                     const Tensor& grad,
                     double grad_scale,
                     double steps,
                     const std::vector<RateRun>& runs,
                     const AdamWNumbers& n) {
  for (const RateRun& run : runs) {
    const auto piece = [&](const Tensor& x) { return x.narrow(0, run.begin, run.size); };
    const double lr = n.lr * run.lr_scale;
    const Tensor g = piece(grad).to(at::kDouble) * grad_scale;
    Tensor p = piece(state.values), m = piece(state.m), v = piece(state.v);
    p.mul_(1 - lr * run.weight_decay);
    m.add_((g - m) * (1 - n.beta1));
    v.mul_(n.beta2).add_(g * g * (1 - n.beta2));
    p.sub_(m / (1 - std::pow(n.beta1, steps)) * lr / (v.sqrt() / std::sqrt(1 - std::pow(n.beta2, steps)) + n.eps));
  }
}

/// Runs of unlike lengths and rates, with padding between and behind them, on any device and in blocks of weights.
void expect_the_reference(at::Device device) {
  at::manual_seed(1);
  constexpr int64_t kSize = 100'003, kBlock = 60'000;  // a block border inside a run
  const std::vector<RateRun> runs = {{0, 5, 1, 0.1}, {8, 50'000, 0.5, 0}, {50'008, 49'000, 2, 0.3}};
  const AdamWState start = random_state(kSize);
  for (const at::ScalarType weights : {at::kFloat, at::kBFloat16}) {
    AdamWState state{start.values.to(device, at::kFloat, false, true),
                     start.m.to(device, at::kFloat, false, true),
                     start.v.to(device, at::kFloat, false, true)};
    AdamWState expected{start.values.to(at::kDouble), start.m.to(at::kDouble), start.v.to(at::kDouble)};
    const Tensor rounded = start.values.to(device, weights, false, true);
    const std::vector<WeightBlock> blocks = {{0, rounded.narrow(0, 0, kBlock)},
                                             {kBlock, rounded.narrow(0, kBlock, kSize - kBlock)}};
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      for (int64_t step = 1; step <= 3; ++step) {
        const Tensor grad = at::randn({kSize}).to(dtype);
        const auto moved = [&](const Tensor& x) { return x.to(device); };
        adamw_update(state,
                     moved(grad),
                     moved(scalar(0.5)),
                     moved(flag(true)),
                     moved(at::full({}, step, at::kLong)),
                     runs,
                     {.lr = 1e-2},
                     blocks);
        adamw_reference(expected, grad, 0.5, static_cast<double>(step), runs, {.lr = 1e-2});
      }
    }
    EXPECT_CLOSE(state.values, expected.values, 6);
    EXPECT_CLOSE(state.m, expected.m, 6);
    EXPECT_CLOSE(state.v, expected.v, 6);
    EXPECT_FALSE(compare(state.values + tolerance(at::kFloat, 6, 8) * 8, expected.values, 6).ok);
    for (const RateRun& run : runs) {
      const auto piece = [&](const Tensor& x) { return x.narrow(0, run.begin, run.size).cpu(); };
      EXPECT_TRUE(at::equal(piece(rounded), piece(state.values).to(weights)));
    }
    for (const auto& [begin, end] : {std::pair{5, 8}, {99'008, 100'003}})  // between and behind the runs lies padding
      EXPECT_TRUE(at::equal(state.values.slice(0, begin, end).cpu(), start.values.slice(0, begin, end)));
  }
}

void expect_no_change_when_skipped(at::Device device) {
  at::manual_seed(2);
  for (const int64_t steps : {0, 4}) {  // 0: before the first applied step
    const AdamWState before = random_state(1000);
    AdamWState state{
        before.values.to(device, false, true), before.m.to(device, false, true), before.v.to(device, false, true)};
    const Tensor weights = at::ones({1000}).to(device, at::kBFloat16);
    adamw_update(state,
                 at::full({1000}, NAN).to(device),
                 scalar(NAN).to(device),
                 flag(false).to(device),
                 at::full({}, steps, at::kLong).to(device),
                 {{0, 1000, 1, 0.1}},
                 {.lr = 1},
                 {{0, weights}});
    EXPECT_TRUE(at::equal(state.values.cpu(), before.values));
    EXPECT_TRUE(at::equal(state.m.cpu(), before.m));
    EXPECT_TRUE(at::equal(state.v.cpu(), before.v));
    EXPECT_TRUE(weights.eq(1).all().item<bool>());
  }
}

TEST(AdamWUpdate, EqualsTheReferenceAndRoundsIntoTheWeights) {
  expect_the_reference(at::kCPU);
}
TEST(AdamWUpdate, ASkippedStepChangesNoBit) {
  expect_no_change_when_skipped(at::kCPU);
}

TEST(AdamWUpdate, IsTheSameOnAGpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  expect_the_reference(at::kCUDA);
  expect_no_change_when_skipped(at::kCUDA);
}

ParamTable table(bool with_frozen) {
  ParamTable params;
  int64_t n = 0;
  for (const auto& [name, shape] : std::vector<std::pair<std::string, std::vector<int64_t>>>{{"a.weight", {7, 11}},
                                                                                             {"a.bias", {7}},
                                                                                             {"frozen.weight", {50}},
                                                                                             {"b.norm.weight", {33}},
                                                                                             {"b.weight", {5, 40}}}) {
    Param param;
    param.spec.name = name;
    param.spec.shape = shape;
    param.value = (at::arange(n, n + at::zeros(shape).numel()).to(at::kFloat) * 0.01).sin().view(shape).clone();
    n += param.value.numel();
    param.trainable = !with_frozen || name != "frozen.weight";
    params.push_back(param);
  }
  return params;
}

OptimizerConfig config() {
  OptimizerConfig config;
  config.groups = {{.match = "b.*", .lr_scale = 2}};
  return config;
}

/// Values after some steps on a gradient that every rank contributes an equal part of.
std::vector<Tensor> trained(World* world, int ranks, std::vector<bool> applied) {
  const Groups groups = world ? make_groups(*world, Mesh({.dp = ranks}), false) : make_single_groups();
  ParamTable params = table(true);
  GradSync grads(params, groups, at::kFloat);
  AdamW optimizer(config(), params, grads);
  for (size_t step = 0; step < applied.size(); ++step) {
    grads.start();
    Tensor loss = at::zeros({});
    for (Param& param : params)
      if (param.trainable) loss = loss + (param.value * param.value.detach().cos() * (1.0 + step)).sum();
    if (groups.rank == 0) loss.backward();  // the others have nothing: the sum is the same in every bit
    grads.finish();
    optimizer.step(clip_by_norm(grads, 0.3).scale, flag(applied[step]).expand({kReaches}), 1e-2);
  }
  int64_t expected = 0;
  for (const bool a : applied) expected += a;
  EXPECT_EQ(optimizer.num_steps(), (AppliedSteps{expected, expected}));
  std::vector<Tensor> values;
  for (const Param& param : params) values.push_back(param.value.detach().clone());
  return values;
}

TEST(AdamW, ShardsOfThreeRanksGiveTheValuesOfOneRank) {
  const std::vector<Tensor> one = trained(nullptr, 1, {true, false, true, true});
  run_on_threads(3, [&](World& world) {
    const std::vector<Tensor> three = trained(&world, 3, {true, false, true, true});
    for (size_t i = 0; i < one.size(); ++i)
      EXPECT_CLOSE(three[i], one[i], 3) << i;  // the norm is summed in another order
  });
}

TEST(AdamW, FrozenParametersStayAndHaveNoState) {
  const ParamTable before = table(true);
  EXPECT_TRUE(at::equal(trained(nullptr, 1, {true})[2], before[2].value));
  ParamTable params = table(true);
  GradSync grads(params, make_single_groups(), at::kFloat);
  const AdamW optimizer(config(), params, grads);
  for (const ShardPiece& piece : grads.pieces()) EXPECT_NE(params[piece.param].spec.name, "frozen.weight");
}

TEST(AdamW, PublishWritesTheMasterValues) {
  ParamTable params = table(false);
  GradSync grads(params, make_single_groups(), at::kFloat);
  AdamW optimizer(config(), params, grads);
  optimizer.master().fill_(3);
  optimizer.publish();
  for (const Param& param : params) EXPECT_TRUE(at::all(param.value == 3).item<bool>()) << param.spec.name;
}

TEST(Rates, TheFirstMatchingGroupWinsAndMayNameADecayOfItsOwn) {
  OptimizerConfig config;
  config.weight_decay = 0.1;
  config.groups = {{.match = "connector.**", .lr_scale = 3, .weight_decay = 0.5}, {.match = "**", .lr_scale = 2}};
  EXPECT_EQ(rates_of(config, "connector.main.mlp.up.bias").lr_scale, 3);
  EXPECT_EQ(rates_of(config, "connector.main.mlp.up.bias").weight_decay, 0.5);  // named outright, so no_decay yields
  EXPECT_EQ(rates_of(config, "decoder.layers.0.mlp.up.weight").lr_scale, 2);
  EXPECT_EQ(rates_of(config, "decoder.layers.0.mlp.up.weight").weight_decay, 0.1);
  EXPECT_EQ(rates_of(config, "tower.layers.0.mlp.up.bias").weight_decay, 0);
  EXPECT_EQ(rates_of(config, "decoder.layers.0.attn_norm.weight").weight_decay, 0);
}

TEST(Clip, ScalesDownToTheNormAndNeverUp) {
  ParamTable params = table(false);
  GradSync grads(params, make_single_groups(), at::kFloat);
  grads.start();
  (params[0].value * 3).sum().backward();
  grads.finish();
  const double norm = 3 * std::sqrt(77.0);
  EXPECT_NEAR(clip_by_norm(grads, 1).norm.item<double>(), norm, 1e-5);
  EXPECT_NEAR(clip_by_norm(grads, 1).scale.item<double>(), 1 / (norm + 1e-6), 1e-8);
  EXPECT_EQ(clip_by_norm(grads, 100).scale.item<double>(), 1);
  EXPECT_EQ(clip_by_norm(grads, 0).scale.item<double>(), 1);
}

}  // namespace
}  // namespace hanok
