#include "model/loss/cross_entropy.h"

#include <gtest/gtest.h>

#include <mutex>

#include "base/error.h"
#include "tests/model/gradients.h"
#include "tests/support/close.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

struct Problem {
  Tensor y, weight, targets;
};

Problem problem(int64_t rows, int64_t width, int64_t vocab, double labelled, at::ScalarType dtype) {
  const Tensor kept = at::rand({rows}) < labelled;
  return {.y = random_f64({rows, width}).to(dtype),
          .weight = random_f64({vocab, width}).to(dtype),
          .targets = at::where(kept, at::randint(0, vocab, {rows}, at::kLong), at::full({rows}, -100, at::kLong))};
}

Tensor dense_reference(const Problem& p) {
  const Tensor rows = p.targets.ne(-100).nonzero().squeeze(1), target = p.targets.index_select(0, rows);
  const Tensor log_p = at::mm(p.y.index_select(0, rows), p.weight.t()).log_softmax(1);
  return log_p.gather(1, target.unsqueeze(1)).squeeze(1).neg();
}

TEST(LinearCrossEntropy, MatchesTheDenseLossAndGradientsAcrossBlocksOfTheVocabulary) {
  const Groups alone = make_single_groups();
  // 2,500 labelled rows make blocks of 512 columns: one short of, at, and one past a boundary, and several blocks.
  for (const int64_t vocab : {1, 3, 511, 512, 513, 1300}) {
    const int64_t rows = vocab > 400 ? 2600 : 40;
    Problem p = problem(rows, 6, vocab, vocab > 400 ? 0.97 : 0.5, at::kDouble);
    p.y.set_requires_grad(true);
    p.weight.set_requires_grad(true);
    const Tensor expected = dense_reference(p),
                 got = linear_cross_entropy(p.y, {p.weight, 0, p.weight.size(0)}, p.targets, alone);
    EXPECT_CLOSE(got, expected, vocab);
    const Tensor g = random_f64(expected.sizes());
    const auto expected_grads = torch::autograd::grad({expected}, {p.y, p.weight}, {g});
    const auto grads = torch::autograd::grad({got}, {p.y, p.weight}, {g});
    EXPECT_CLOSE(grads[0], expected_grads[0], vocab);
    EXPECT_CLOSE(grads[1], expected_grads[1], rows);
    Problem narrow{p.y.detach().to(at::kFloat).set_requires_grad(true),
                   p.weight.detach().to(at::kFloat).set_requires_grad(true),
                   p.targets};
    const Tensor loss =
        linear_cross_entropy(narrow.y, {narrow.weight, 0, narrow.weight.size(0)}, narrow.targets, alone);
    EXPECT_CLOSE(loss, expected, vocab);
    const auto narrow_grads = torch::autograd::grad({loss}, {narrow.y, narrow.weight}, {g.to(at::kFloat)});
    EXPECT_CLOSE(narrow_grads[0], expected_grads[0], vocab);
    EXPECT_CLOSE(narrow_grads[1], expected_grads[1], rows);
  }
}

TEST(LinearCrossEntropy, AddsTheGradientOfTheHeadToOneThatIsThere) {
  const Groups alone = make_single_groups();
  constexpr int64_t kVocab = 700, kWidth = 6;
  Problem p = problem(2600, kWidth, kVocab, 0.97, at::kDouble);
  p.weight.set_requires_grad(true);
  const auto loss = [&] { return linear_cross_entropy(p.y, {p.weight, 0, kVocab}, p.targets, alone).sum(); };
  const Tensor gradient = torch::autograd::grad({loss()}, {p.weight})[0];
  const Tensor before = random_f64({kVocab, kWidth}), buffer = before.clone();
  p.weight.mutable_grad() = buffer;
  loss().backward();
  EXPECT_EQ(p.weight.grad().const_data_ptr(), buffer.const_data_ptr());
  EXPECT_CLOSE(buffer - before, gradient, 2600);
}

TEST(LinearCrossEntropy, GradientsEqualFiniteDifferences) {
  const Groups alone = make_single_groups();
  const Problem p = problem(9, 5, 11, 0.7, at::kDouble);
  expect_gradients(
      [&](const auto& in) {
        return linear_cross_entropy(in[0], {in[1], 0, in[1].size(0)}, p.targets, alone);
      },
      {p.y, p.weight});
}

TEST(LinearCrossEntropy, IsFiniteForLogitsFarApart) {
  const Tensor y = at::tensor({1000.0f, -1000.0f}).view({2, 1}).set_requires_grad(true);
  const Tensor weight = at::tensor({1.0f, -1.0f, 0.0f}).view({3, 1});
  const Tensor loss =
      linear_cross_entropy(y, {weight, 0, weight.size(0)}, at::tensor({0, 0}, at::kLong), make_single_groups());
  EXPECT_EQ(loss[0].item<float>(), 0);
  EXPECT_EQ(loss[1].item<float>(), 2000);
  EXPECT_TRUE(torch::autograd::grad({loss.sum()}, {y})[0].isfinite().all().item<bool>());
}

TEST(LinearCrossEntropy, GivesZeroGradientsWithoutLabels) {
  Problem p = problem(5, 4, 7, 0, at::kFloat);
  p.y.set_requires_grad(true);
  p.weight.set_requires_grad(true);
  const Tensor loss = linear_cross_entropy(p.y, {p.weight, 0, p.weight.size(0)}, p.targets, make_single_groups());
  EXPECT_EQ(loss.numel(), 0);
  const auto grads = torch::autograd::grad({loss.sum()}, {p.y, p.weight});
  EXPECT_EQ(grads[0].abs().sum().item<float>(), 0);
  EXPECT_EQ(grads[1].abs().sum().item<float>(), 0);
}

TEST(LinearCrossEntropy, RefusesATargetOutsideTheVocabulary) {
  const Tensor y = at::ones({1, 2}), weight = at::ones({3, 2});
  for (const int64_t target : {3, -1}) {
    const Tensor targets = at::full({1}, target, at::kLong);
    EXPECT_ERROR(error_of([&] {
                   linear_cross_entropy(y, {weight, 0, weight.size(0)}, targets, make_single_groups());
                 }),
                 ErrorKind::kShape,
                 "outside the vocabulary");
  }
}

/// Rank r of n holds rows [r * ceil(V / n), ...) of the vocabulary.
Tensor shard(const Tensor& weight, int rank, int size, int64_t& begin) {
  const int64_t block = (weight.size(0) + size - 1) / size;
  begin = std::min(rank * block, weight.size(0));
  return weight.narrow(0, begin, std::min(block, weight.size(0) - begin)).clone();
}

TEST(LinearCrossEntropy, IsTheSameOverShardsOfTheVocabularyEvenEmptyOnes) {
  for (const int size : {2, 3, 4}) {
    for (const bool sequence : {false, true}) {
      for (const int64_t vocab : {5, 64, 601}) {  // 5 over 4 ranks: the last one holds nothing
        Problem p = problem(24, 6, vocab, 0.6, at::kDouble);
        const Tensor y = p.y.clone().set_requires_grad(true), weight = p.weight.clone().set_requires_grad(true);
        const Tensor expected = dense_reference({y, weight, p.targets});
        const Tensor g = random_f64(expected.sizes());
        const auto expected_grads = torch::autograd::grad({expected}, {y, weight}, {g});
        const Tensor candidates = at::tensor({int64_t{0}, vocab - 1, vocab / 2}, at::kLong);
        const Tensor rows = at::tensor({3, 7}, at::kLong);
        const Tensor expected_candidates =
            at::mm(p.y, p.weight.t()).log_softmax(1).index_select(0, rows).index_select(1, candidates);
        run_on_threads(size, [&](World& world) {
          const Groups groups = make_groups(world, Mesh({.tp = size}), sequence);
          int64_t begin = 0;
          const Tensor own = shard(p.weight, groups.tp->rank(), size, begin).set_requires_grad(true);
          const int64_t count = sequence ? 24 / size : 24, first = sequence ? groups.tp->rank() * count : 0;
          const Tensor own_y = p.y.narrow(0, first, count).clone().set_requires_grad(true);
          const Tensor loss = linear_cross_entropy(own_y, {own, begin, p.weight.size(0)}, p.targets, groups);
          EXPECT_CLOSE(loss, expected, vocab);
          const auto grads = torch::autograd::grad({loss}, {own_y, own}, {g});
          EXPECT_CLOSE(grads[0], expected_grads[0].narrow(0, first, count), vocab);
          EXPECT_CLOSE(grads[1], expected_grads[1].narrow(0, begin, own.size(0)), 24);
          const Tensor log_p = candidate_logprobs(own_y, {own, begin, p.weight.size(0)}, rows, candidates, groups);
          EXPECT_CLOSE(log_p, expected_candidates, vocab);
        });
      }
    }
  }
}

}  // namespace
}  // namespace hanok
