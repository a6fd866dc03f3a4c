#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "model/kernels/gelu_tanh.h"
#include "model/kernels/interpolate_rows.h"
#include "model/kernels/lookup_rows.h"
#include "model/kernels/qk_rope.h"
#include "model/kernels/rms_norm.h"
#include "model/kernels/simd.h"
#include "model/kernels/small_gemm.h"
#include "model/kernels/swiglu.h"
#include "parallel/grad_buffer.h"
#include "tests/model/gradients.h"
#include "tests/support/close.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

// The same mathematics as the reference library writes it, in the dtype given.
Tensor rms_norm_reference(const Tensor& x, const Tensor& weight, double eps) {
  const Tensor wide = x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
  return (wide * at::rsqrt(wide.square().mean(-1, true) + eps)).to(x.scalar_type()) * weight;
}

Tensor rotate_half(const Tensor& x) {
  const auto halves = x.chunk(2, -1);
  return at::cat({-halves[1], halves[0]}, -1);
}

Tensor rotate_reference(const Tensor& x_TNH, const Tensor& cos_TR, const Tensor& sin_TR) {
  const Tensor cos = at::cat({cos_TR, cos_TR}, -1).unsqueeze(1), sin = at::cat({sin_TR, sin_TR}, -1).unsqueeze(1);
  const Tensor wide = x_TNH.to(cos.scalar_type());
  return (wide * cos + rotate_half(wide) * sin).to(x_TNH.scalar_type());
}

Tensor qk_rope_reference(const Tensor& qkv, const QkRope& how) {
  const int64_t heads = how.num_heads + 2 * how.num_kv_heads;
  const Tensor x = qkv.view({qkv.size(0), heads, -1});
  const auto parts = x.split_with_sizes({how.num_heads, how.num_kv_heads, how.num_kv_heads}, 1);
  const auto norm = [&](const Tensor& t, const Tensor& w) {
    return w.defined() ? rms_norm_reference(t, w, how.eps) : t;
  };
  return at::cat({rotate_reference(norm(parts[0], how.q_weight_H), how.cos_TR, how.sin_TR),
                  rotate_reference(norm(parts[1], how.k_weight_H), how.cos_TR, how.sin_TR),
                  parts[2]},
                 1)
      .view(qkv.sizes());
}

QkRope random_rope(int64_t rows, int64_t heads, int64_t kv_heads, int64_t width, bool norm, at::ScalarType dtype) {
  const Tensor angle = at::rand({rows, width / 2}, at::kDouble) * 6;
  QkRope how{.num_heads = heads,
             .num_kv_heads = kv_heads,
             .eps = 1e-6,
             .cos_TR = angle.cos().to(dtype),
             .sin_TR = angle.sin().to(dtype)};
  if (norm) {
    how.q_weight_H = (random_f64({width}) * 0.3 + 1).to(dtype);
    how.k_weight_H = (random_f64({width}) * 0.3 + 1).to(dtype);
  }
  return how;
}

TEST(Simd, ExpIsWithinTwoUlpOverItsRange) {
  double worst = 0;
  for (double x = -87; x <= 88; x += 0.00137) {
    const float argument = static_cast<float>(x), got = simd::exp(argument);
    const double expected = std::exp(static_cast<double>(argument));
    worst = std::max(worst, std::abs(got - expected) / (expected * std::numeric_limits<float>::epsilon()));
  }
  EXPECT_LE(worst, 2);
  EXPECT_TRUE(std::isnan(simd::exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST(SmallGemm, MultipliesAnyNumberOfRowsWithEitherStride) {
  for (const int64_t m : {1, 2, 5, 6, 7, 60})
    for (const int64_t n : {16, 32, 48, 80})
      for (const int64_t k : {1, 3, 33})
        for (const bool transposed : {false, true}) {
          const Tensor a = at::randn({m, k}), b = at::randn({k, n}), start = at::randn({m, n});
          Tensor c = start.clone();
          const Tensor stored = transposed ? a.t().contiguous() : a;
          simd::call(SmallGemm{},
                     m,
                     n,
                     k,
                     stored.const_data_ptr<float>(),
                     transposed ? int64_t{1} : k,
                     transposed ? m : int64_t{1},
                     b.const_data_ptr<float>(),
                     n,
                     c.mutable_data_ptr<float>(),
                     n,
                     true);
          EXPECT_CLOSE(c, start.to(at::kDouble) + at::mm(a.to(at::kDouble), b.to(at::kDouble)), k + 1);
        }
}

TEST(RmsNormKernel, MatchesTheReferenceInEveryDtype) {
  for (const auto& shape : {std::vector<int64_t>{1, 4}, {7, 33}, {130, 128}, {3, 5, 16}}) {
    const Tensor x = random_f64(shape) * 3, weight = random_f64({shape.back()});
    const Tensor expected = rms_norm_reference(x, weight, 1e-6);
    EXPECT_CLOSE(rms_norm(x, weight, 1e-6), expected, shape.back());
    EXPECT_CLOSE(rms_norm(x.to(at::kFloat), weight.to(at::kFloat), 1e-6), expected, shape.back());
    const Tensor half = x.to(at::kBFloat16), half_weight = weight.to(at::kBFloat16);
    EXPECT_CLOSE(rms_norm(half, half_weight, 1e-6), rms_norm_reference(half, half_weight, 1e-6), 1);
  }
}

TEST(RmsNormKernel, GradientsEqualFiniteDifferences) {
  expect_gradients([](const auto& in) { return rms_norm(in[0], in[1], 1e-3); },
                   {random_f64({150, 9}), random_f64({9})});
}

TEST(RmsNormKernel, NamesBothWidthsWhenTheyDiffer) {
  EXPECT_EQ(message_of(ErrorKind::kShape,
                       [] {
                         rms_norm(at::ones({2, 3}), at::ones({4}), 1e-6);
                       }),
            "rms_norm: got rows of width 3, expected 4");
}

TEST(SwiGluKernel, MatchesTheReferenceInEveryDtype) {
  const auto reference = [](const Tensor& h) {
    const auto halves = h.chunk(2, -1);
    return at::silu(halves[0]) * halves[1];
  };
  for (const auto& shape : {std::vector<int64_t>{1, 2}, {7, 66}, {90, 256}}) {
    const Tensor h = random_f64(shape) * 4;
    EXPECT_CLOSE(swiglu(h), reference(h), 1);
    EXPECT_CLOSE(swiglu(h.to(at::kFloat)), reference(h.to(at::kFloat).to(at::kDouble)), 1);
    EXPECT_CLOSE(swiglu(h.to(at::kBFloat16)), reference(h.to(at::kBFloat16)), 1);
  }
  EXPECT_TRUE(swiglu(at::tensor({-200.0f, 200.0f, 1.0f, 1.0f}).view({1, 4})).isfinite().all().item<bool>());
}

TEST(SwiGluKernel, GradientsEqualFiniteDifferences) {
  expect_gradients([](const auto& in) { return swiglu(in[0]); }, {random_f64({20, 14}) * 2});
}

TEST(GeluTanhKernel, MatchesTheReferenceInEveryDtypeAndFiniteDifferences) {
  const Tensor x = random_f64({37, 19}) * 4;
  EXPECT_CLOSE(gelu_tanh(x), at::gelu(x, "tanh"), 1);
  EXPECT_CLOSE(gelu_tanh(x.to(at::kFloat)), at::gelu(x.to(at::kFloat).to(at::kDouble), "tanh"), 1);
  EXPECT_CLOSE(gelu_tanh(x.to(at::kBFloat16)), at::gelu(x.to(at::kBFloat16), "tanh"), 1);
  EXPECT_TRUE(gelu_tanh(at::tensor({-1e4f, 1e4f})).isfinite().all().item<bool>());
  expect_gradients([](const auto& in) { return gelu_tanh(in[0]); }, {x});
}

TEST(QkRopeKernel, MatchesTheReferenceInEveryDtype) {
  for (const bool norm : {false, true})
    for (const int64_t width : {4, 20, 64}) {
      const Tensor qkv = random_f64({70, 7 * width});
      const QkRope how = random_rope(70, 3, 2, width, norm, at::kDouble);
      EXPECT_CLOSE(qk_rope(qkv, how), qk_rope_reference(qkv, how), width);
      const auto cast = [&](at::ScalarType dtype, at::ScalarType table) {
        QkRope typed = how;
        if (norm) typed.q_weight_H = how.q_weight_H.to(dtype), typed.k_weight_H = how.k_weight_H.to(dtype);
        typed.cos_TR = how.cos_TR.to(table);
        typed.sin_TR = how.sin_TR.to(table);
        const Tensor x = qkv.to(dtype);
        EXPECT_CLOSE(qk_rope(x, typed), qk_rope_reference(x, typed), dtype == at::kFloat ? width : 1);
      };
      cast(at::kFloat, at::kFloat);
      cast(at::kBFloat16, at::kBFloat16);
      cast(at::kBFloat16, at::kFloat);
    }
}

TEST(QkRopeKernel, GradientsEqualFiniteDifferences) {
  const QkRope plain = random_rope(70, 2, 1, 6, false, at::kDouble);
  expect_gradients([&](const auto& in) { return qk_rope(in[0], plain); }, {random_f64({70, 24})});
  QkRope normed = random_rope(70, 2, 1, 6, true, at::kDouble);
  normed.eps = 1e-3;
  expect_gradients(
      [&](const auto& in) {
        QkRope how = normed;
        how.q_weight_H = in[1];
        how.k_weight_H = in[2];
        return qk_rope(in[0], how);
      },
      {random_f64({70, 24}), normed.q_weight_H, normed.k_weight_H});
}

TEST(InterpolateRowsKernel, MatchesTheReferenceAndFiniteDifferences) {
  const Tensor index = at::randint(0, 12, {33, 4}, at::kLong), weight = at::rand({33, 4}, at::kDouble);
  const Tensor table = random_f64({12, 18});
  const Tensor expected = (at::embedding(table, index) * weight.unsqueeze(-1)).sum(1);
  EXPECT_CLOSE(interpolate_rows(table, index, weight), expected, 4);
  EXPECT_CLOSE(interpolate_rows(table.to(at::kFloat), index, weight.to(at::kFloat)), expected, 4);
  expect_gradients([&](const auto& in) { return interpolate_rows(in[0], index, weight); }, {table});
}

TEST(LookupRowsKernel, TakesItsOwnRowsOnlyAndMatchesFiniteDifferences) {
  const Tensor index = at::tensor({4, 9, 4, 2, 7, 4}, at::kLong), table = random_f64({4, 5});
  const Tensor y = lookup_rows(table, index, 4);  // rows 4 to 7
  EXPECT_TRUE(bit_equal(y[0], table[0]));
  EXPECT_TRUE(bit_equal(y[4], table[3]));
  EXPECT_EQ(y[1].abs().sum().item<double>() + y[3].abs().sum().item<double>(), 0);
  expect_gradients([&](const auto& in) { return lookup_rows(in[0], index, 4); }, {table});
  EXPECT_EQ(lookup_rows(table.narrow(0, 0, 0), index, 8).abs().sum().item<double>(), 0);
}

TEST(LookupRowsKernel, AddsUnroundedToTheRowsOfAWiderBuffer) {
  const Tensor index = at::randint(0, 20, {200}, at::kLong), dy = at::randn({200, 16}).to(at::kBFloat16);
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    SCOPED_TRACE(at::toString(dtype));
    const Tensor table = at::randn({30, 16}).to(at::kBFloat16).set_requires_grad(true);
    const Tensor buffer = at::full({30, 16}, 7, dtype);
    Tensor sum = at::zeros({30, 16});
    for (int64_t t = 0; t < 200; ++t) sum[index[t].item<int64_t>()] += dy[t].to(at::kFloat);
    attach_grad_buffer(table, buffer);
    begin_gradient(table);  // what lies there is of no use
    lookup_rows(table, index, 0).backward(dy);
    EXPECT_TRUE(bit_equal(buffer, sum.to(dtype)));
    lookup_rows(table, index, 0).backward(dy);
    EXPECT_TRUE(
        bit_equal(buffer, dtype == at::kBFloat16 ? (sum.to(dtype).to(at::kFloat) + sum).to(dtype) : 2 * sum.to(dtype)));
    detach_grad_buffer(table);
  }
}

TEST(LookupRowsKernel, AddsTheSameGradientToAnExistingDenseOne) {
  const Tensor index = at::randint(0, 30, {200}, at::kLong), table = at::randn({30, 16}).set_requires_grad(true);
  const Tensor dy = at::randn({200, 16}), start = at::randn({30, 16});
  lookup_rows(table, index, 0).backward(dy);
  const Tensor expected = start + table.grad();
  table.mutable_grad() = start.clone();
  const void* storage = table.grad().const_data_ptr();
  lookup_rows(table, index, 0).backward(dy);
  EXPECT_EQ(table.grad().const_data_ptr(), storage);
  EXPECT_TRUE(bit_equal(table.grad(), expected));
  // A tied weight: the other use arrives first, and dense.
  const auto tied_gradient = [&] {
    at::mm(lookup_rows(table, index, 0), table.t()).square().sum().backward();
    return table.grad();
  };
  table.mutable_grad() = Tensor();
  const Tensor tied = start + tied_gradient();
  table.mutable_grad() = start.clone();
  EXPECT_CLOSE(tied_gradient(), tied, 200);
}

TEST(Kernels, ResultsDoNotDependOnTheNumberOfThreads) {
  const Tensor x = at::randn({700, 64}).set_requires_grad(true), weight = at::randn({64}).set_requires_grad(true);
  const Tensor dy = at::randn({700, 64});
  const int threads = at::get_num_threads();
  std::vector<std::vector<Tensor>> results;
  for (const int count : {1, 2, 3}) {
    at::set_num_threads(count);
    const Tensor y = rms_norm(x, weight, 1e-6);
    auto grads = torch::autograd::grad({y}, {x, weight}, {dy});
    grads.push_back(y.detach());
    results.push_back(grads);
  }
  at::set_num_threads(threads);
  for (const auto& result : results)
    for (size_t i = 0; i < result.size(); ++i) EXPECT_TRUE(bit_equal(result[i], results[0][i]));
}

}  // namespace
}  // namespace hanok
