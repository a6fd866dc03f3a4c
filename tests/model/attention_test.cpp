#include "model/kernels/attention.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "tests/model/gradients.h"
#include "tests/support/close.h"

namespace hanok {
namespace {

struct Case {
  int64_t heads, kv_heads, width;
  std::vector<int32_t> lengths;
  bool causal;
};

Segments segments_of(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> starts{0};
  for (const int32_t length : lengths) starts.push_back(starts.back() + length);
  return make_segments(at::tensor(starts, at::kInt), starts.back(), at::kCPU);
}

int64_t rows_of(const Segments& segments) {
  return segments.starts[-1].item<int32_t>();
}

/// One dense softmax over the whole row with a block-diagonal mask.
Tensor reference(const Tensor& qkv, const Case& c, const Segments& segments) {
  const int64_t rows = qkv.size(0);
  const auto parts =
      qkv.view({rows, c.heads + 2 * c.kv_heads, c.width}).split_with_sizes({c.heads, c.kv_heads, c.kv_heads}, 1);
  const auto heads = [&](const Tensor& x) { return x.repeat_interleave(c.heads / x.size(1), 1).transpose(0, 1); };
  Tensor allowed = at::zeros({rows, rows}, at::kBool);
  for (int64_t s = 0; s + 1 < segments.starts.size(0); ++s) {
    const int64_t begin = segments.starts[s].item<int32_t>(), end = segments.starts[s + 1].item<int32_t>();
    allowed.slice(0, begin, end).slice(1, begin, end).fill_(true);
  }
  if (c.causal) allowed = allowed.tril();
  const Tensor score =
      at::matmul(heads(parts[0]), heads(parts[1]).transpose(1, 2)) / std::sqrt(static_cast<double>(c.width));
  const Tensor p = score.masked_fill(allowed.logical_not(), -INFINITY).softmax(-1);
  return at::matmul(p, heads(parts[2])).transpose(0, 1).reshape({rows, c.heads * c.width});
}

const std::vector<Case>& cases() {
  static const std::vector<Case> kCases = {
      {1, 1, 4, {1}, true},
      {2, 1, 16, {5, 1, 60, 61}, true},
      {4, 2, 20, {33, 17}, false},
      {6, 2, 72, {121, 3}, true},
      {8, 1, 32, {64, 59, 7}, true},
      {2, 2, 24, {1, 1, 2}, false},
      {2, 1, 8, {1000, 30}, true},  // longer than one stretch of query rows
      {1, 1, 8, {700}, false},
  };
  return kCases;
}

TEST(Attention, MatchesADenseSoftmaxWithABlockMask) {
  for (const Case& c : cases()) {
    const Segments segments = segments_of(c.lengths);
    const Tensor qkv = random_f64({rows_of(segments), (c.heads + 2 * c.kv_heads) * c.width});
    const Tensor expected = reference(qkv, c, segments);
    EXPECT_CLOSE(segment_attention(qkv, c.heads, c.kv_heads, segments, c.causal), expected, segments.longest);
    EXPECT_CLOSE(
        segment_attention(qkv.to(at::kFloat), c.heads, c.kv_heads, segments, c.causal), expected, segments.longest);
    const Tensor half = qkv.to(at::kBFloat16);
    EXPECT_CLOSE(segment_attention(half, c.heads, c.kv_heads, segments, c.causal),
                 reference(half.to(at::kDouble), c, segments),
                 1);
  }
}

TEST(Attention, GradientsMatchThoseOfTheDenseSoftmax) {
  for (const Case& c : cases()) {
    const Segments segments = segments_of(c.lengths);
    const Tensor qkv = random_f64({rows_of(segments), (c.heads + 2 * c.kv_heads) * c.width}).set_requires_grad(true);
    const Tensor narrow = qkv.detach().to(at::kFloat).set_requires_grad(true);
    const Tensor expected = reference(qkv, c, segments);
    const Tensor dy = random_f64(expected.sizes());
    const Tensor grad = torch::autograd::grad({expected}, {qkv}, {dy})[0];
    const Tensor y = segment_attention(qkv, c.heads, c.kv_heads, segments, c.causal);
    EXPECT_CLOSE(torch::autograd::grad({y}, {qkv}, {dy})[0], grad, segments.longest);
    const Tensor y32 = segment_attention(narrow, c.heads, c.kv_heads, segments, c.causal);
    EXPECT_CLOSE(torch::autograd::grad({y32}, {narrow}, {dy.to(at::kFloat)})[0], grad, segments.longest);
  }
}

TEST(Attention, GradientsEqualFiniteDifferences) {
  const Segments segments = segments_of({7, 12});
  for (const bool causal : {true, false})
    expect_gradients([&](const auto& in) { return segment_attention(in[0], 4, 2, segments, causal); },
                     {random_f64({19, 8 * 6})});
}

TEST(Attention, DoesNotSeeNeighboursNorItsPlaceInTheRow) {
  const int64_t heads = 4, kv_heads = 2, width = 12, x = (heads + 2 * kv_heads) * width, length = 77;
  const Tensor sample = at::randn({length, x}), dy = at::randn({length, heads * width});
  std::vector<Tensor> outputs, grads;
  for (const int32_t before : {0, 1, 13, 64, 500}) {
    for (const int32_t after : {0, 9}) {
      const Segments segments = segments_of({before, static_cast<int32_t>(length), after});
      Tensor row = (at::randn({before + length + after, x}) * 10);
      row.narrow(0, before, length).copy_(sample);
      row.set_requires_grad(true);
      const Tensor y = segment_attention(row, heads, kv_heads, segments, true);
      Tensor grad = at::randn(y.sizes());
      grad.narrow(0, before, length).copy_(dy);
      outputs.push_back(y.detach().narrow(0, before, length));
      grads.push_back(torch::autograd::grad({y}, {row}, {grad})[0].narrow(0, before, length));
    }
  }
  for (size_t i = 1; i < outputs.size(); ++i) {
    EXPECT_TRUE(bit_equal(outputs[0], outputs[i])) << i;
    EXPECT_TRUE(bit_equal(grads[0], grads[i])) << i;
  }
}

TEST(Attention, DoesNotDependOnTheNumberOfThreads) {
  const Segments segments = segments_of({50, 3, 200, 41});
  const Tensor qkv = at::randn({294, 6 * 16}).set_requires_grad(true), dy = at::randn({294, 4 * 16});
  const int threads = at::get_num_threads();
  std::vector<Tensor> outputs, grads;
  for (const int count : {1, 2, 3}) {
    at::set_num_threads(count);
    outputs.push_back(segment_attention(qkv, 4, 1, segments, true));
    grads.push_back(torch::autograd::grad({outputs.back()}, {qkv}, {dy})[0]);
  }
  at::set_num_threads(threads);
  for (size_t i = 1; i < outputs.size(); ++i) {
    EXPECT_TRUE(bit_equal(outputs[0].detach(), outputs[i].detach()));
    EXPECT_TRUE(bit_equal(grads[0], grads[i]));
  }
}

TEST(Attention, RefusesStartsThatDoNotCoverTheRows) {
  EXPECT_THROW(make_segments(at::tensor({0, 3}, at::kInt), 4, at::kCPU), Error);
  EXPECT_THROW(make_segments(at::tensor({0, 5, 4}, at::kInt), 4, at::kCPU), Error);
  EXPECT_THROW(make_segments(at::tensor({1, 4}, at::kInt), 4, at::kCPU), Error);
  EXPECT_THROW(make_segments(at::tensor({0, 4}, at::kLong), 4, at::kCPU), Error);
}

}  // namespace
}  // namespace hanok
