// The same samples give the same loss and the same gradients, however they are split into rows, micro-batches and
// ranks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/equivalence/material.h"
#include "tests/support/close.h"
#include "trainer/run_stages.h"

namespace hanok {
namespace {

struct Gradients {
  double loss = 0;
  std::vector<Tensor> of_param;
};

/// Loss and gradients of one step over `rows`, dealt to the ranks of `groups`. `empty_batches`: micro-batches without a
/// sample that every rank gets on top.
Gradients gradients_of(const std::vector<Row>& rows,
                       int64_t rows_per_micro_batch,
                       const BatchSpec& spec,
                       const Groups& groups,
                       int empty_batches = 0) {
  StageConfig stage;
  Vlm model(small_model(false), groups, at::kFloat, at::kCPU);
  initialise(model, 11);
  GradSync grads(model.params(), groups, at::kFloat);
  AdamW optimizer(stage.optimizer, model.params(), grads);
  const auto objective = make_objective("next_token");
  Learner learner{stage, model, grads, optimizer, *objective};
  const std::vector<Sample> samples = real_samples();
  std::vector<Batch> batches =
      batches_of(samples, rows_of_slice(rows, groups.dp->rank(), groups.dp->size()), rows_per_micro_batch, spec);
  for (int i = 0; i < empty_batches; ++i) batches.push_back(make_batch({}, {}, spec));
  const StepResult result = run_step(learner, batches, /*lr=*/0);
  EXPECT_TRUE(result.applied.item<bool>());
  Gradients out{result.loss.item<double>()};
  for (size_t i = 0; i < model.params().size(); ++i)
    out.of_param.push_back(grads.full_grad(static_cast<int>(i)).detach().clone());
  return out;
}

std::vector<SampleRef> some_samples() {
  std::vector<SampleRef> refs;  // digits, texts and conversations: 2 to 150 labels
  for (const int64_t index : {0, 1, 2, 3, 40, 64, 65, 70, 71, 96, 97, 100}) refs.push_back({0, index});
  return refs;
}

/// `count` rows; the samples are dealt in turn, so that any count gives other rows.
std::vector<Row> dealt(const std::vector<SampleRef>& samples, size_t count) {
  std::vector<Row> rows(count);
  for (size_t i = 0; i < samples.size(); ++i) rows[i % count].push_back(samples[i]);
  return rows;
}

void expect_same(const Gradients& got, const Gradients& want, const std::string& what) {
  // Sums over all tokens in another order. A gradient that is zero but for rounding (a key bias) is judged by the size
  // of all of them, not by its own.
  constexpr int64_t kTokens = 1500;
  EXPECT_NEAR(got.loss, want.loss, tolerance(at::kFloat, kTokens, want.loss)) << what;
  double largest = 0;
  for (const Tensor& g : want.of_param) largest = std::max(largest, g.abs().max().item<double>());
  for (size_t i = 0; i < want.of_param.size(); ++i)
    EXPECT_LE((got.of_param[i] - want.of_param[i]).abs().max().item<double>(), tolerance(at::kFloat, kTokens, largest))
        << what << ", parameter " << i;
}

TEST(Split, LossAndGradientsDoNotDependOnIt) {
  const std::vector<SampleRef> samples = some_samples();
  for (const TokenWeight weight : {TokenWeight::kToken, TokenWeight::kSqrt, TokenWeight::kSample}) {
    for (const WeightUnit unit : {WeightUnit::kSample, WeightUnit::kTurn}) {
      BatchSpec spec = small_batches(1);
      spec.weight = weight;
      spec.unit = unit;
      const std::string name = concat("weight ", static_cast<int>(weight), ", unit ", static_cast<int>(unit));
      const Groups one = make_single_groups();
      const Gradients whole = gradients_of(dealt(samples, 1), 1, spec, one);
      EXPECT_TRUE(std::isfinite(whole.loss));
      expect_same(gradients_of(dealt(samples, samples.size()), 1, spec, one), whole, name + ", a sample a batch");
      expect_same(gradients_of(dealt(samples, 5), 2, spec, one, 1), whole, name + ", 5 rows by 2 and an empty batch");
      std::vector<SampleRef> turned = samples;
      std::reverse(turned.begin(), turned.end());
      expect_same(gradients_of(dealt(turned, 3), 3, spec, one), whole, name + ", other order");
      for (const int ranks : {2, 3}) {
        run_on_threads(ranks, [&](World& world) {
          const Groups groups = make_groups(world, Mesh({.dp = ranks}), false);
          expect_same(gradients_of(dealt(samples, 4), 1, spec, groups), whole, concat(name, ", 4 rows on dp", ranks));
        });
      }
    }
  }
}

TEST(Split, RanksWithoutAnySampleTakePart) {
  const BatchSpec spec = small_batches(1);
  const std::vector<Row> rows = dealt(some_samples(), 2);
  const Gradients whole = gradients_of(rows, 1, spec, make_single_groups());
  run_on_threads(3, [&](World& world) {
    const Groups groups = make_groups(world, Mesh({.dp = 3}), false);
    const bool has_rows = !rows_of_slice(rows, groups.dp->rank(), 3).empty();
    expect_same(gradients_of(rows, 1, spec, groups, has_rows ? 0 : 1), whole, "2 rows on dp3");
  });
}

TEST(Split, TheSquareRootWeighsSamplesBetweenTokensAndSamples) {
  // Two samples of 2 and 91 labels: the shorter one's share of the weight.
  const std::vector<Sample> samples = real_samples();
  const std::vector<SampleRef> refs = {{0, 0}, {0, 64}};
  const auto a = static_cast<double>(samples[0].num_label_tokens()),
             b = static_cast<double>(samples[64].num_label_tokens());
  const std::pair<TokenWeight, double> expected[] = {{TokenWeight::kToken, a / (a + b)},
                                                     {TokenWeight::kSqrt, std::sqrt(a) / (std::sqrt(a) + std::sqrt(b))},
                                                     {TokenWeight::kSample, 0.5}};
  for (const auto& [weight, share] : expected) {
    BatchSpec spec = small_batches(1);
    spec.weight = weight;
    const Batch batch = batches_of(samples, {refs}, 1, spec).front();
    const double first = batch.weight_T.narrow(0, 0, batch.samples[0].end).sum(at::kDouble).item<double>();
    EXPECT_NEAR(first / batch.weight_sum, share, 1e-6);
  }
}

}  // namespace
}  // namespace hanok
