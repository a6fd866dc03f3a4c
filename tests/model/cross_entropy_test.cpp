#include "model/loss/cross_entropy.h"

#include <gtest/gtest.h>

#include <mutex>

#include "base/error.h"
#include "parallel/grad_buffer.h"
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
          .weight = random_f64({vocab, width}).mul(0.5).to(dtype),
          .targets = at::where(kept, at::randint(0, vocab, {rows}, at::kLong), at::full({rows}, -100, at::kLong))};
}

Tensor dense_reference(const Problem& p) {
  const Tensor rows = p.targets.ne(-100).nonzero().squeeze(1), target = p.targets.index_select(0, rows);
  const Tensor log_p = at::mm(p.y.index_select(0, rows), p.weight.t()).log_softmax(1);
  return log_p.gather(1, target.unsqueeze(1)).squeeze(1).neg();
}

int64_t num_labels(const Tensor& targets) {
  return targets.ne(-100).sum().item<int64_t>();
}

/// A leaf of its own.
Tensor leaf(const Tensor& x, at::ScalarType dtype) {
  return x.detach().to(dtype).clone().set_requires_grad(true);
}

TEST(LinearCrossEntropy, MatchesTheDenseLossAndGradientsAcrossChunksOfRows) {
  const Groups alone = make_single_groups();
  // Of 1,300 columns chunks are 768 rows, of 9,000 the least, 256: one row short of, at, and past whole chunks.
  for (const auto& [vocab, rows, labelled] : std::vector<std::tuple<int64_t, int64_t, double>>{
           {1, 40, 0.5}, {3, 40, 0.5}, {1300, 2600, 0.97}, {9000, 255, 1}, {9000, 256, 1}, {9000, 513, 1}}) {
    SCOPED_TRACE(concat(rows, " rows, vocabulary ", vocab));
    Problem p = problem(rows, 6, vocab, labelled, at::kDouble);
    p.y.set_requires_grad(true);
    p.weight.set_requires_grad(true);
    const VocabShard head{p.weight, 0, vocab};
    const Tensor dense = dense_reference(p), g = random_f64(dense.sizes());
    const Tensor expected = (dense * g).sum(), got = linear_cross_entropy(p.y, head, p.targets, g, alone);
    EXPECT_CLOSE(label_losses(p.y, head, p.targets, alone), dense, vocab);
    EXPECT_CLOSE(got, expected, vocab * rows);
    const auto expected_grads = torch::autograd::grad({expected}, {p.y, p.weight});
    const auto grads = torch::autograd::grad({got}, {p.y, p.weight});
    EXPECT_CLOSE(grads[0], expected_grads[0], vocab);
    EXPECT_CLOSE(grads[1], expected_grads[1], rows);
    const Tensor y = leaf(p.y, at::kFloat), weight = leaf(p.weight, at::kFloat);
    const auto narrow_grads = torch::autograd::grad(
        {linear_cross_entropy(y, {weight, 0, vocab}, p.targets, g.to(at::kFloat), alone)}, {y, weight});
    EXPECT_CLOSE(label_losses(y, {weight, 0, vocab}, p.targets, alone), dense, vocab);
    EXPECT_CLOSE(narrow_grads[0], expected_grads[0], vocab);
    EXPECT_CLOSE(narrow_grads[1], expected_grads[1], rows);
  }
}

TEST(LinearCrossEntropy, AddsTheGradientOfTheHeadToOneThatIsThere) {
  const Groups alone = make_single_groups();
  constexpr int64_t kVocab = 1300, kWidth = 6;
  Problem p = problem(2600, kWidth, kVocab, 0.97, at::kDouble);
  p.weight.set_requires_grad(true);
  const VocabShard head{p.weight, 0, kVocab};
  const Tensor g = random_f64({num_labels(p.targets)});
  const auto loss = [&] { return linear_cross_entropy(p.y, head, p.targets, g, alone); };
  const Tensor gradient = torch::autograd::grad({loss()}, {p.weight})[0];
  const Tensor before = random_f64({kVocab, kWidth}), buffer = before.clone();
  p.weight.mutable_grad() = buffer;
  loss().backward();
  EXPECT_EQ(p.weight.grad().const_data_ptr(), buffer.const_data_ptr());
  EXPECT_CLOSE(buffer - before, gradient, 2600);
  const Tensor after = buffer.clone();
  {
    at::NoGradGuard no_grad;
    loss();
    label_losses(p.y, head, p.targets, alone);
  }
  EXPECT_TRUE(buffer.equal(after)) << "a loss without gradients left one";
  // What lies in the buffer cannot be scaled any more.
  EXPECT_ERROR(error_of([&] { (loss() * 2).backward(); }), ErrorKind::kShape, "gradient of 2, expected 1");
}

TEST(LinearCrossEntropy, WritesTheFirstShareOfABufferOfAnotherDtype) {
  const Groups alone = make_single_groups();
  constexpr int64_t kVocab = 1300;
  Problem p = problem(900, 6, kVocab, 1, at::kBFloat16);
  p.weight.set_requires_grad(true);
  const VocabShard head{p.weight, 0, kVocab};
  const Tensor exact = leaf(p.weight, at::kDouble), g = random_f64({900});
  const Tensor expected =
      torch::autograd::grad({(dense_reference({p.y.to(at::kDouble), exact, p.targets}) * g).sum()}, {exact})[0];
  Tensor buffer = at::full({kVocab, 6}, NAN, at::kFloat);
  attach_grad_buffer(p.weight, buffer);
  for (int share = 1; share <= 2; ++share) {
    if (share == 1) begin_gradient(p.weight);
    linear_cross_entropy(p.y, head, p.targets, g, alone).backward();
    const Closeness close = compare(buffer, expected * share, 900, at::kBFloat16);
    EXPECT_TRUE(close.ok) << close.text();
  }
  begin_gradient(p.weight);
  linear_cross_entropy(p.y, head, at::full_like(p.targets, -100), g.narrow(0, 0, 0), alone).backward();
  EXPECT_EQ(buffer.abs().max().item<float>(), 0) << "no label: zeros, not what was there";
  detach_grad_buffer(p.weight);
}

TEST(LinearCrossEntropy, GradientsEqualFiniteDifferences) {
  const Groups alone = make_single_groups();
  const Problem p = problem(9, 5, 11, 0.7, at::kDouble);
  const Tensor g = random_f64({num_labels(p.targets)});
  expect_gradients(
      [&](const auto& in) {
        return linear_cross_entropy(in[0], {in[1], 0, in[1].size(0)}, p.targets, g, alone);
      },
      {p.y, p.weight});
}

TEST(LinearCrossEntropy, IsFiniteForLogitsFarApart) {
  const Tensor y = at::tensor({1000.0f, -1000.0f}).view({2, 1}).set_requires_grad(true);
  const Tensor weight = at::tensor({1.0f, -1.0f, 0.0f}).view({3, 1});
  const Groups alone = make_single_groups();
  const VocabShard head{weight, 0, weight.size(0)};
  const Tensor targets = at::tensor({0, 0}, at::kLong), losses = label_losses(y, head, targets, alone);
  EXPECT_EQ(losses[0].item<float>(), 0);
  EXPECT_EQ(losses[1].item<float>(), 2000);
  const Tensor loss = linear_cross_entropy(y, head, targets, at::ones({2}), alone);
  EXPECT_TRUE(torch::autograd::grad({loss}, {y})[0].isfinite().all().item<bool>());
}

TEST(LinearCrossEntropy, GivesZeroGradientsWithoutLabels) {
  Problem p = problem(5, 4, 7, 0, at::kFloat);
  p.y.set_requires_grad(true);
  p.weight.set_requires_grad(true);
  const Groups alone = make_single_groups();
  const VocabShard head{p.weight, 0, p.weight.size(0)};
  EXPECT_EQ(label_losses(p.y, head, p.targets, alone).numel(), 0);
  const Tensor loss = linear_cross_entropy(p.y, head, p.targets, at::empty({0}), alone);
  EXPECT_EQ(loss.item<float>(), 0);
  const auto grads = torch::autograd::grad({loss}, {p.y, p.weight});
  EXPECT_EQ(grads[0].abs().sum().item<float>(), 0);
  EXPECT_EQ(grads[1].abs().sum().item<float>(), 0);
}

TEST(LinearCrossEntropy, RefusesATargetOutsideTheVocabulary) {
  const Tensor y = at::ones({1, 2}), weight = at::ones({3, 2});
  for (const int64_t target : {3, -1}) {
    const Tensor targets = at::full({1}, target, at::kLong);
    EXPECT_ERROR(error_of([&] {
                   label_losses(y, {weight, 0, weight.size(0)}, targets, make_single_groups());
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
      // 5 over 4 ranks: the last one holds nothing. 8,194 over 4: by itself the last one, 2,047 columns, would take 512
      // rows at a time, and the others 256.
      for (const int64_t vocab : {5, 64, 601, 8194}) {
        const int64_t rows = vocab > 8000 ? 600 : 24;
        Problem p = problem(rows, 6, vocab, 0.6, at::kDouble);
        const Tensor y = p.y.clone().set_requires_grad(true), weight = p.weight.clone().set_requires_grad(true);
        const Tensor expected = dense_reference({y, weight, p.targets});
        const Tensor g = random_f64(expected.sizes());
        const auto expected_grads = torch::autograd::grad({expected}, {y, weight}, {g});
        const Tensor expected_loss = (expected * g).sum().detach();
        const Tensor candidates = at::tensor({int64_t{0}, vocab - 1, vocab / 2}, at::kLong);
        const Tensor asked = at::tensor({3, 7}, at::kLong);
        const Tensor expected_candidates =
            at::mm(p.y, p.weight.t()).log_softmax(1).index_select(0, asked).index_select(1, candidates);
        run_on_threads(size, [&](World& world) {
          const Groups groups = make_groups(world, Mesh({.tp = size}), sequence);
          int64_t begin = 0;
          const Tensor own = shard(p.weight, groups.tp->rank(), size, begin).set_requires_grad(true);
          const int64_t count = sequence ? rows / size : rows, first = sequence ? groups.tp->rank() * count : 0;
          const Tensor own_y = p.y.narrow(0, first, count).clone().set_requires_grad(true);
          const VocabShard head{own, begin, p.weight.size(0)};
          const Tensor loss = linear_cross_entropy(own_y, head, p.targets, g, groups);
          EXPECT_CLOSE(loss, expected_loss, vocab * rows);
          EXPECT_CLOSE(label_losses(own_y, head, p.targets, groups), expected, vocab);
          const auto grads = torch::autograd::grad({loss}, {own_y, own});
          EXPECT_CLOSE(grads[0], expected_grads[0].narrow(0, first, count), vocab);
          EXPECT_CLOSE(grads[1], expected_grads[1].narrow(0, begin, own.size(0)), rows);
          const Tensor log_p = candidate_logprobs(own_y, head, asked, candidates, groups);
          EXPECT_CLOSE(log_p, expected_candidates, vocab);
        });
      }
    }
  }
}

}  // namespace
}  // namespace hanok
