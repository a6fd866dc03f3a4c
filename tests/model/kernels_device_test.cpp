// Every CUDA kernel against its CPU reference in f64: values and gradients, all dtypes, odd sizes, addresses off their
// alignment. The same comparison must fail on a value that is 8 tolerances off, and a second run must give the same
// bits.
#include <gtest/gtest.h>

#include "base/error.h"
#include "model/kernels/gelu_tanh.h"
#include "model/kernels/interpolate_rows.h"
#include "model/kernels/layer_norm.h"
#include "model/kernels/lookup_rows.h"
#include "model/kernels/qk_rope.h"
#include "model/kernels/rms_norm.h"
#include "model/kernels/scatter_rows.h"
#include "model/kernels/swiglu.h"
#include "model/kernels/vocab_softmax.h"
#include "model/loss/cross_entropy.h"
#include "parallel/grad_buffer.h"
#include "parallel/squared_norm.h"
#include "tests/model/on_device.h"
#include "tests/support/close.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

/// Gradients of norms are differences of up to three terms, each of which may be larger than the result: as if four
/// times as many values had been added.
int64_t norm_length(int64_t rows, int64_t width) {
  return 4 * std::max(rows, width);
}

TEST(KernelsOnDevice, RmsNorm) {
  at::manual_seed(1);
  std::vector<OpCase> cases;
  for (const auto& [rows, width] : std::vector<std::pair<int64_t, int64_t>>{{1, 4},
                                                                            {7, 33},
                                                                            {130, 128},
                                                                            {300, 2560},
                                                                            {67, 4096},
                                                                            {9, 5120},
                                                                            {3, 12288},
                                                                            {2, 40000},
                                                                            {1000, 512},
                                                                            {77, 1024},
                                                                            {65, 1536},
                                                                            {9, 20480}}) {
    const int64_t n = norm_length(rows, width);
    cases.push_back({concat("rms_norm ", rows, "x", width),
                     {random_f64({rows, width}) * 3, random_f64({width})},
                     n,
                     [](const Tensors& in) { return Tensors{rms_norm(in[0], in[1], 1e-6)}; }});
    cases.push_back({concat("add_rms_norm ", rows, "x", width),
                     {random_f64({rows, width}), random_f64({rows, width}), random_f64({width})},
                     n,
                     [](const Tensors& in) {
                       const SumAndNorm both = add_rms_norm(in[0], in[1], in[2], 1e-6);
                       return Tensors{both.sum, both.norm};
                     }});
  }
  check_all(cases);
}

TEST(KernelsOnDevice, LayerNorm) {
  at::manual_seed(2);
  std::vector<OpCase> cases;
  for (const auto& [rows, width] : std::vector<std::pair<int64_t, int64_t>>{{1, 4},
                                                                            {7, 33},
                                                                            {500, 1152},
                                                                            {31, 4608},
                                                                            {3, 12288},
                                                                            {2, 40000},
                                                                            {700, 256},
                                                                            {77, 1024},
                                                                            {65, 1536},
                                                                            {40, 2048}})
    cases.push_back({concat("layer_norm ", rows, "x", width),
                     {random_f64({rows, width}) * 2 + 1, random_f64({width}), random_f64({width})},
                     norm_length(rows, width),
                     [](const Tensors& in) { return Tensors{layer_norm(in[0], in[1], in[2], 1e-6)}; }});
  check_all(cases);
}

TEST(KernelsOnDevice, SwiGluAndGelu) {
  at::manual_seed(3);
  std::vector<OpCase> cases;
  for (const auto& [rows, width] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 2}, {7, 66}, {90, 512}, {33, 6144}, {5, 24576}, {70001, 8}})
    cases.push_back({concat("swiglu ", rows, "x", width), {random_f64({rows, width}) * 3}, 1, [](const Tensors& in) {
                       return Tensors{swiglu(in[0])};
                     }});
  for (const int64_t count : {1, 703, 4304 * 64, 100003})
    cases.push_back({concat("gelu_tanh ", count), {random_f64({count}) * 3}, 1, [](const Tensors& in) {
                       return Tensors{gelu_tanh(in[0])};
                     }});
  check_all(cases);
}

/// Angles of every row in the dtype that the tables shall have beside activations of another.
QkRope rope_like(const Tensors& in, const Tensor& angle, int64_t heads, int64_t kv_heads, bool norm, bool wide_tables) {
  const bool half = in[0].element_size() == 2;
  const auto dtype = wide_tables && half ? at::kFloat : in[0].scalar_type();
  // Both sides turn by the same numbers: those that 16 bits hold, where 16 bits are tried.
  const auto table = [&](const Tensor& x) { return x.to(at::kBFloat16).to(in[0].device(), dtype); };
  return {.num_heads = heads,
          .num_kv_heads = kv_heads,
          .q_weight_H = norm ? in[1] : Tensor(),
          .k_weight_H = norm ? in[2] : Tensor(),
          .eps = 1e-6,
          .cos_TR = table(angle.cos()),
          .sin_TR = table(angle.sin())};
}

TEST(KernelsOnDevice, QkRope) {
  at::manual_seed(4);
  std::vector<OpCase> cases;
  for (const int64_t width : {4, 20, 64, 72, 128, 256})
    for (const bool norm : {false, true})
      for (const bool wide_tables : {false, true}) {
        const int64_t rows = 301, heads = 5, kv_heads = 2;
        const Tensor angle = at::rand({rows, width / 2}, at::kDouble) * 6;
        Tensors inputs = {random_f64({rows, (heads + 2 * kv_heads) * width})};
        if (norm) inputs.push_back(random_f64({width}) * 0.3 + 1), inputs.push_back(random_f64({width}) * 0.3 + 1);
        cases.push_back({concat("qk_rope width ", width, norm ? " norm" : "", wide_tables ? " wide" : ""),
                         inputs,
                         norm ? std::max(width, rows * heads) : 1,
                         [=](const Tensors& in) {
                           return Tensors{qk_rope(in[0], rope_like(in, angle, heads, kv_heads, norm, wide_tables))};
                         }});
      }
  check_all(cases);
}

TEST(KernelsOnDevice, Rows) {
  at::manual_seed(5);
  std::vector<OpCase> cases;
  for (const int64_t width : {5, 64, 1152, 4096}) {
    const Tensor index = at::randint(0, 40, {300}, at::kLong), taps = at::randint(0, 40, {129, 4}, at::kLong);
    index.narrow(0, 50, 120).fill_(17);  // one row that many use
    const Tensor share = at::rand({129, 4}, at::kDouble).to(at::kFloat).to(at::kDouble);
    const Tensor places = at::randperm(90, at::kLong).narrow(0, 0, 33);
    const auto moved = [](const Tensor& x, const Tensor& like) { return x.to(like.device()); };
    cases.push_back({concat("lookup_rows ", width), {random_f64({25, width})}, 140, [=](const Tensors& in) {
                       return Tensors{lookup_rows(in[0], moved(index, in[0]), 6)};
                     }});
    cases.push_back({concat("interpolate_rows ", width), {random_f64({40, width})}, 40, [=](const Tensors& in) {
                       const auto wide = in[0].scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
                       return Tensors{interpolate_rows(in[0], moved(taps, in[0]), moved(share, in[0]).to(wide))};
                     }});
    cases.push_back(
        {concat("replace_rows ", width), {random_f64({90, width}), random_f64({33, width})}, 1, [=](const Tensors& in) {
           return Tensors{replace_rows(in[0], moved(places, in[0]), in[1])};
         }});
    cases.push_back(
        {concat("add_at_rows ", width), {random_f64({50, width}), random_f64({33, width})}, 1, [=](const Tensors& in) {
           return Tensors{add_at_rows(in[0], moved(places, in[0]), in[1], 20)};
         }});
  }
  // A row whose uses fill many of the chunks that sums are cut into, one after it that begins inside one, and taps that
  // are not those of a bilinear table.
  const Tensor index = at::randint(0, 60, {4000}, at::kLong), taps = at::randint(0, 40, {77, 3}, at::kLong);
  index.narrow(0, 500, 2500).fill_(17);
  const Tensor share = at::rand({77, 3}, at::kDouble).to(at::kFloat).to(at::kDouble);
  for (const int64_t width : {5, 72, 520}) {
    cases.push_back(
        {concat("lookup_rows of a frequent row ", width), {random_f64({50, width})}, 2600, [=](const Tensors& in) {
           return Tensors{lookup_rows(in[0], index.to(in[0].device()), 6)};
         }});
    cases.push_back(
        {concat("interpolate_rows of three taps ", width), {random_f64({40, width})}, 40, [=](const Tensors& in) {
           const auto wide = in[0].scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
           return Tensors{interpolate_rows(in[0], taps.to(in[0].device()), share.to(in[0].device(), wide))};
         }});
  }
  check_all(cases);
}

TEST(KernelsOnDevice, LookupRowsAddsToItsGradientBuffer) {
  at::manual_seed(7);
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  const Tensor index = at::randint(0, 60, {4000}, at::kLong);
  index.narrow(0, 500, 2500).fill_(17);
  for (const int64_t width : {5, 72, 520}) {
    for (const at::ScalarType dtype : kDtypes) {
      const Tensor table = random_f64({50, width}), dy = random_f64({4000, width}).to(dtype).to(at::kDouble);
      const auto sums_on = [&](at::Device device, at::ScalarType of_table, at::ScalarType of_buffer) {
        const Tensor weight = table.to(device, of_table, false, /*copy=*/true).set_requires_grad(true);
        const Tensor buffer = at::full({50, width}, 3, at::device(device).dtype(of_buffer));
        attach_grad_buffer(weight, buffer);
        begin_gradient(weight);
        for (int i = 0; i < 2; ++i) lookup_rows(weight, index.to(device), 6).backward(dy.to(device, of_table));
        detach_grad_buffer(weight);
        return buffer.cpu();
      };
      const Tensor expected = sums_on(at::kCPU, at::kDouble, at::kDouble);
      for (const at::ScalarType of_buffer : {dtype, at::kFloat, at::kDouble}) {
        SCOPED_TRACE(concat("width ", width, " ", at::toString(dtype), " into ", at::toString(of_buffer)));
        // A buffer that rows cannot be added to gets a gradient that was rounded.
        const auto judged = of_buffer == at::kDouble ? dtype : of_buffer;
        const Tensor got = sums_on(at::kCUDA, dtype, of_buffer);
        const Closeness close = compare(got, expected, 2600, judged);
        EXPECT_TRUE(close.ok) << close.text();
        EXPECT_FALSE(compare(got + 8 * close.tolerance, expected, 2600, judged).ok);
      }
    }
  }
}

TEST(KernelsOnDevice, VocabSoftmax) {
  at::manual_seed(6);
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  for (const auto& [rows, vocab] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 5}, {3, 77}, {40, 1300}, {257, 9001}, {6, 151936}}) {
    for (const at::ScalarType dtype : kDtypes) {
      SCOPED_TRACE(concat(rows, " rows, vocabulary ", vocab, " ", at::toString(dtype)));
      const auto exact = [&](const Tensor& x) { return x.to(dtype).to(at::kDouble); };
      const Tensor y = exact(random_f64({rows, 16})), weight = exact(random_f64({vocab, 16}) * 0.5);
      const Tensor target = at::randint(-vocab / 3, vocab, {rows}, at::kLong), g = random_f64({rows});
      const auto device = [&](const Tensor& x) { return x.to(at::kCUDA, dtype); };
      Tensor z = vocab_logits(y, weight), device_z = vocab_logits(device(y), device(weight));
      const VocabStats expected = vocab_stats(z, target), got = vocab_stats(device_z, target.to(at::kCUDA));
      // What the sums are judged by is the dtype of the logits, whose rounding they carry.
      const auto close = [&](const Tensor& a, const Tensor& b) { return compare(a, b, 16, dtype); };
      const Tensor log_sum = expected.max_N + expected.sum_N.log();
      EXPECT_TRUE(close(got.max_N, expected.max_N).ok) << close(got.max_N, expected.max_N).text();
      EXPECT_TRUE(close(got.max_N + got.sum_N.log(), log_sum).ok);
      EXPECT_TRUE(close(got.target_N, expected.target_N).ok);
      EXPECT_FALSE(close(got.max_N + 8 * close(got.max_N, expected.max_N).tolerance, expected.max_N).ok);
      const auto wide = got.max_N.scalar_type();
      turn_into_vocab_gradient(z, target, log_sum, g);
      turn_into_vocab_gradient(device_z, target.to(at::kCUDA), log_sum.to(at::kCUDA, wide), g.to(at::kCUDA, wide));
      EXPECT_CLOSE(device_z, z, 16);
      const auto grads_on = [&](const Tensor& y_here, const Tensor& weight_here) {
        const Tensor y_leaf = y_here.set_requires_grad(true), w_leaf = weight_here.set_requires_grad(true);
        const Tensor labels = target.clamp_min(0);
        const Tensor loss =
            linear_cross_entropy(y_leaf, {w_leaf, 0, vocab}, labels, g.to(y_here.device()), make_single_groups());
        return torch::autograd::grad({loss}, {y_leaf, w_leaf});
      };
      const auto grads = grads_on(y.clone(), weight.clone()), device_grads = grads_on(device(y), device(weight));
      EXPECT_CLOSE(device_grads[0], grads[0], vocab);
      EXPECT_CLOSE(device_grads[1], grads[1], rows);
    }
  }
}

TEST(KernelsOnDevice, SquaredNorm) {
  at::manual_seed(8);
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  const Tensor x = random_f64({3'000'001});
  std::vector<Stretch> stretches = {{0, 5}, {8, 100'000}, {100'008, 1}, {200'001, 77}, {300'032, 2'699'969}};
  std::vector<Stretch> many;
  for (int64_t i = 0; i < 1000; ++i) many.push_back({i * 3000, 1 + i % 2999});
  for (const at::ScalarType dtype : kDtypes) {
    for (const auto& which : {stretches, many}) {
      const Tensor here = x.to(at::kCUDA, dtype);
      const Tensor got = squared_norm(here, which), expected = squared_norm(here.cpu(), which);
      EXPECT_TRUE(compare(got, expected, 3'000'001, at::kDouble).ok) << at::toString(dtype);
      EXPECT_TRUE(bit_equal(got.cpu(), squared_norm(here, which).cpu()));
      EXPECT_TRUE(compare(squared_norm(here.narrow(0, 1, 3'000'000), {{0, 2'999'999}}),
                          squared_norm(here.cpu().narrow(0, 1, 3'000'000), {{0, 2'999'999}}),
                          3'000'000,
                          at::kDouble)
                      .ok);
    }
  }
  EXPECT_EQ(squared_norm(x.to(at::kCUDA), {}).item<double>(), 0);
}

TEST(KernelsOnDevice, RefuseOtherDtypesByName) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  const Tensor x = at::ones({4, 8}, at::device(at::kCUDA).dtype(at::kInt));
  EXPECT_ERROR(error_of([&] { swiglu(x); }), ErrorKind::kShape, "kernel swiglu");
}

}  // namespace
}  // namespace hanok
