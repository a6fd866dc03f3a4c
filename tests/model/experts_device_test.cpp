// Layers with experts on a GPU: their kernels as kernels_device_test.cpp does it, the sort against the CPU's bit by
// bit, and whole models with gradients.
#include <gtest/gtest.h>

#include <numeric>

#include "model/kernels/choose_experts.h"
#include "model/kernels/grouped_linear.h"
#include "model/kernels/order_rows.h"
#include "model/kernels/parcels.h"
#include "model/kernels/route_rows.h"
#include "parallel/grad_buffer.h"
#include "tests/model/model_on_device.h"
#include "tests/model/on_device.h"

namespace hanok {
namespace {

Tensor on(const Tensor& x, const Tensor& like) {
  return x.to(like.device());
}

/// Packed rows 0 .. rows - 1, every fifth token none.
Tensor some_rows(int64_t tokens, int64_t rows) {
  const Tensor token = at::arange(tokens, at::kLong);
  return at::where(token.remainder(5).eq(3), at::scalar_tensor(-1, at::kLong), token.remainder(rows));
}

TEST(ExpertsOnDevice, ChooseExperts) {
  at::manual_seed(41);
  std::vector<OpCase> cases;
  for (const auto& [tokens, experts, choices] : std::vector<std::array<int64_t, 3>>{
           {1, 2, 1}, {37, 5, 2}, {300, 128, 8}, {65, 33, 33}, {9, 1000, 40}, {0, 8, 2}}) {
    std::vector<Tensor> rows;
    // Spaced so that no dtype takes two of them for each other without making them equal, and near enough that no
    // share is almost 1: what is left of its gradient would be rounding.
    for (int64_t t = 0; t < tokens; ++t)
      rows.push_back(at::randperm(experts, at::kDouble) * std::min(1.0, 8.0 / experts) - 2);
    const Tensor logits = tokens > 0 ? at::stack(rows) : at::empty({0, experts}, at::kDouble);
    const Tensor row = some_rows(tokens, 3), added = random_f64({3, experts});
    for (const bool normalise : {true, false})
      for (const bool balanced : {true, false})
        cases.push_back({concat("choose_experts ", tokens, "x", experts, " ", choices, normalise, balanced),
                         {logits},
                         experts,
                         [=](const Tensors& in) {
                           RoutedTokens how{.row_T = on(row, in[0])};
                           if (balanced) how.gradient = [=] { return on(added, in[0]); };
                           return Tensors{choose_experts(in[0], choices, normalise, how).weight_TK};
                         }});
  }
  check_all(cases);
}

TEST(ExpertsOnDevice, ChoicesAndCountsAreThoseOfTheCpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  at::manual_seed(42);
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    // Of few values, so that many are equal: the order of equal ones is defined.
    const Tensor logits = at::randint(0, 9, {501, 60}, at::kDouble).to(dtype), row = some_rows(501, 4);
    const Tensor counts = at::zeros({4, 60}, at::kLong), device_counts = counts.to(at::kCUDA);
    const ExpertChoice want = choose_experts(logits, 6, true, {.row_T = row, .assigned_RE = counts});
    const ExpertChoice got =
        choose_experts(logits.to(at::kCUDA), 6, true, {.row_T = row.to(at::kCUDA), .assigned_RE = device_counts});
    EXPECT_TRUE(at::equal(got.index_TK.cpu(), want.index_TK));
    EXPECT_TRUE(at::equal(device_counts.cpu(), counts));
    EXPECT_CLOSE(got.share_TE, want.share_TE, 60);
  }
  Tensor bad = at::zeros({3, 40}, at::kCUDA);
  bad[1].fill_(NAN);
  bad[2][7] = INFINITY;
  const ExpertChoice got = choose_experts(bad, 5, true, {.row_T = at::zeros({3}, bad.options().dtype(at::kLong))});
  EXPECT_TRUE(got.index_TK.ge(0).logical_and(got.index_TK.lt(40)).all().item<bool>());
  EXPECT_TRUE(got.weight_TK.narrow(0, 1, 2).isnan().all().item<bool>());
}

void expect_same_order(const RowOrder& got, const RowOrder& want) {
  EXPECT_TRUE(at::equal(got.slot_N.cpu(), want.slot_N));
  EXPECT_TRUE(at::equal(got.place_TK.cpu(), want.place_TK));
  EXPECT_TRUE(at::equal(got.ends_E.cpu(), want.ends_E));
}

TEST(ExpertsOnDevice, OrdersAreThoseOfTheCpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  at::manual_seed(43);
  for (const auto& [tokens, choices, experts] : std::vector<std::array<int64_t, 3>>{
           {0, 2, 4}, {1, 1, 1}, {33, 1, 2}, {1000, 8, 128}, {8192, 8, 128}, {700, 3, 2500}, {300, 2, 12287}}) {
    SCOPED_TRACE(concat(tokens, "x", choices, " of ", experts));
    Tensor index = at::randint(0, experts, {tokens, choices}, at::kLong);
    if (experts == 128) index.clamp_(3, 90);  // experts without rows at both ends
    const Tensor row = some_rows(tokens, 2);
    expect_same_order(order_by_expert(index.to(at::kCUDA), row.to(at::kCUDA), experts),
                      order_by_expert(index, row, experts));
  }
  Tensor index = at::randint(-1, 6, {400, 5}, at::kLong);  // choices of nobody
  expect_same_order(order_by_expert(index.to(at::kCUDA), Tensor(), 6), order_by_expert(index, Tensor(), 6));
  for (const auto& [tokens, choices, experts, ranks] : std::vector<std::array<int64_t, 4>>{
           {0, 2, 4, 2}, {1, 1, 1, 1}, {33, 2, 8, 8}, {5000, 8, 128, 4}, {4096, 8, 128, 64}, {700, 3, 2500, 5}}) {
    SCOPED_TRACE(concat(tokens, "x", choices, " of ", experts, " to ", ranks));
    index = at::randint(0, experts, {tokens, choices}, at::kLong);
    const Tensor row = some_rows(tokens, 2);
    const ParcelOrder want = order_parcels(index, row, experts, ranks),
                      got = order_parcels(index.to(at::kCUDA), row.to(at::kCUDA), experts, ranks);
    expect_same_order(got.rows, want.rows);
    EXPECT_TRUE(at::equal(got.counts_R2.cpu(), want.counts_R2));
  }
}

// Parcels for all ranks, opened as if one rank of so many experts had got them: what is packed must come out.
TEST(ExpertsOnDevice, Parcels) {
  at::manual_seed(50);
  std::vector<OpCase> cases;
  for (const auto& [width, choices, experts, ranks] : std::vector<std::array<int64_t, 4>>{
           {5, 2, 6, 3}, {64, 8, 128, 4}, {2048, 8, 128, 4}, {24, 3, 2000, 2}, {8, 1, 4, 4}}) {
    std::vector<Tensor> chosen;
    for (int64_t t = 0; t < 90; ++t) chosen.push_back(at::randperm(experts, at::kLong).narrow(0, 0, choices));
    const Tensor index = at::stack(chosen), row = some_rows(90, 2);
    const ParcelOrder order = order_parcels(index, row, experts, ranks);
    const Tensor sums = order.counts_R2.sum(0);
    const int64_t own = experts / ranks, copies = sums[1].item<int64_t>();
    const Tensor slot = order.rows.slot_N.narrow(0, 0, sums[0].item<int64_t>());
    cases.push_back({concat("parcels of ", width, ", ", choices, " of ", experts, " to ", ranks),
                     {random_f64({90, width}), random_f64({90, choices})},
                     std::max(ranks, choices),
                     [=](const Tensors& in) {
                       const Tensor parcels = pack_parcels(
                           in[0], in[1], on(index, in[0]), on(slot, in[0]), on(order.rows.place_TK, in[0]), experts);
                       const RowOrder opened =
                           order_by_expert(experts_of_parcels(parcels, in[0].size(1), choices), Tensor(), own);
                       const Tensor slots = opened.slot_N.narrow(0, 0, copies);
                       const UnpackedParcels out = unpack_parcels(parcels, in[0].size(1), slots, opened.place_TK);
                       return Tensors{out.x_ND, out.weight_MK};
                     }});
  }
  check_all(cases);
}

TEST(ExpertsOnDevice, RouteRows) {
  at::manual_seed(44);
  std::vector<OpCase> cases;
  for (const int64_t width : {5, 64, 2048}) {
    const Tensor index = at::randint(0, 6, {90, 3}, at::kLong);
    const RowOrder order = order_by_expert(index, some_rows(90, 2), 6);
    cases.push_back({concat("gather_rows ", width), {random_f64({90, width})}, 3, [=](const Tensors& in) {
                       return Tensors{gather_rows(in[0], on(order.slot_N, in[0]), on(order.place_TK, in[0]))};
                     }});
    cases.push_back({concat("combine_rows ", width),
                     {random_f64({270, width}), random_f64({90, 3})},
                     width,
                     [=](const Tensors& in) {
                       return Tensors{combine_rows(in[0], in[1], on(order.slot_N, in[0]), on(order.place_TK, in[0]))};
                     }});
    cases.push_back({concat("sum_rows ", width), {random_f64({270, width})}, 3, [=](const Tensors& in) {
                       return Tensors{sum_rows(in[0], on(order.slot_N, in[0]), on(order.place_TK, in[0]))};
                     }});
  }
  check_all(cases);
}

// In one launch (bf16, widths of 16 bytes, aligned) and in a loop.
TEST(ExpertsOnDevice, GroupedLinear) {
  at::manual_seed(45);
  std::vector<OpCase> cases;
  const std::vector<std::vector<int>> groups = {
      {7}, {0, 3, 0, 130, 1, 0}, {64, 64, 64}, {0, 0, 9}, {5, 0, 0}, {300, 17, 0, 0, 511, 40, 2, 1}};
  for (const auto& [in_width, out_width] : std::vector<std::array<int64_t, 2>>{{64, 48}, {8, 8}, {30, 12}, {256, 96}})
    for (const std::vector<int>& counts : groups) {
      std::vector<int> sums(counts.size());
      std::partial_sum(counts.begin(), counts.end(), sums.begin());
      const int64_t rows = sums.back(), experts = static_cast<int64_t>(counts.size());
      const Tensor ends = at::tensor(sums, at::kInt);
      cases.push_back({concat("grouped_linear ", in_width, " to ", out_width, ", ", rows, " rows"),
                       {random_f64({rows, in_width}), random_f64({experts, out_width, in_width})},
                       std::max({rows, in_width, out_width}),
                       [=](const Tensors& in) { return Tensors{grouped_linear(in[0], in[1], on(ends, in[0]))}; }});
    }
  check_all(cases);
}

// The buffer is in f32, as a step's is; an expert without rows adds nothing to it, whatever the product left there.
TEST(ExpertsOnDevice, GradientsOfWeightsAreAddedToTheBufferOfTheStep) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  at::manual_seed(49);
  const std::vector<int> sums = {0, 50, 50, 50, 177, 177};
  for (const auto& [in_width, out_width] : std::vector<std::array<int64_t, 2>>{{64, 48}, {30, 12}})
    for (const auto accumulate : {at::kFloat, at::kBFloat16}) {
      const Tensor x = random_f64({177, in_width}).to(at::kBFloat16),
                   dy = random_f64({177, out_width}).to(at::kBFloat16);
      const Tensor before = random_f64({6, out_width, in_width}).to(accumulate);
      Tensor expected = before.to(at::kDouble);
      for (size_t e = 0, begin = 0; e < sums.size(); begin = sums[e++])
        expected[e].add_(
            at::mm(dy.to(at::kDouble).slice(0, begin, sums[e]).t(), x.to(at::kDouble).slice(0, begin, sums[e])));
      const Tensor weight = at::zeros({6, out_width, in_width}, x.options().device(at::kCUDA)).set_requires_grad(true);
      const Tensor buffer = before.to(at::kCUDA);
      attach_grad_buffer(weight, buffer);
      // Memory that was just given back holds what is no number.
      for (int i = 0; i < 3; ++i) at::full({6, out_width, in_width}, NAN, weight.options().requires_grad(false));
      const Tensor y = grouped_linear(x.to(at::kCUDA), weight, at::tensor(sums, at::kInt).to(at::kCUDA));
      torch::autograd::backward({y}, {dy.to(at::kCUDA)});
      const Closeness close =
          compare(buffer, expected, 177, at::kBFloat16);  // products of a step are rounded to 16 bits
      EXPECT_TRUE(close.ok) << close.text();
      EXPECT_TRUE(at::equal(buffer.cpu()[2], before[2]));
      begin_gradient(weight);  // what the buffer holds is of no more use
      torch::autograd::backward({grouped_linear(x.to(at::kCUDA), weight, at::tensor(sums, at::kInt).to(at::kCUDA))},
                                {dy.to(at::kCUDA)});
      const Closeness written = compare(buffer, expected - before.to(at::kDouble), 177, at::kBFloat16);
      EXPECT_TRUE(written.ok) << written.text();
      EXPECT_EQ(buffer[2].abs().max().item<double>(), 0);
      detach_grad_buffer(weight);
    }
}

/// The number of tokens is known on the device alone: rows behind the last expert hold what they like.
TEST(ExpertsOnDevice, RowsBehindTheLastExpertChangeNothing) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  at::manual_seed(46);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const auto options = at::TensorOptions(at::kCUDA).dtype(dtype);
    const Tensor ends = at::tensor({40, 40, 77}, at::kInt).to(at::kCUDA);
    const Tensor weight = at::randn({3, 32, 64}, options), x = at::randn({100, 64}, options);
    const auto run = [&](double behind) {
      Tensor in = x.clone(), dy = at::ones({100, 32}, options);
      in.narrow(0, 77, 23).fill_(behind);
      dy.narrow(0, 77, 23).fill_(behind);
      in.set_requires_grad(true);
      Tensor w = weight.clone().set_requires_grad(true);
      const Tensor y = grouped_linear(in, w, ends);
      const auto grads = torch::autograd::grad({y}, {in, w}, {dy});
      return Tensors{y.detach().narrow(0, 0, 77), grads[0].narrow(0, 0, 77), grads[1]};
    };
    const Tensors zeros = run(0), bad = run(NAN);
    for (size_t i = 0; i < zeros.size(); ++i) EXPECT_TRUE(bit_equal(zeros[i].cpu(), bad[i].cpu())) << i;
  }
}

ModelConfig expert_config(int64_t experts, int64_t choices) {
  ModelConfig config = device_config();
  config.decoder.type = "qwen3_moe";
  config.decoder.experts = experts;
  config.decoder.experts_per_token = choices;
  config.decoder.expert_ffn = 16;
  config.decoder.dense_layers = {1};
  config.decoder.aux_loss = 0.1;
  return config;
}

ModelResult run_experts(const ModelConfig& config, const TinyRow& row, at::ScalarType dtype, at::Device device) {
  const DecoderConfig& decoder = config.decoder;
  const Tensor token = at::arange(row.input.tokens_T.size(0), at::kLong);
  const Tensor row_T = at::where(token.lt(40), token.ge(11).to(at::kLong), at::scalar_tensor(-1, at::kLong));
  return run_model(config,
                   row,
                   dtype,
                   device,
                   {},
                   std::make_shared<Routing>(Routing{.row_T = row_T,
                                                     .num_rows = 2,
                                                     .tokens_of_step = 40,
                                                     .coefficient = decoder.aux_loss,
                                                     .layers = decoder.layers,
                                                     .expert_layers = decoder.num_expert_layers(),
                                                     .experts = decoder.experts,
                                                     .experts_per_token = decoder.experts_per_token}));
}

TEST(ExpertsOnDevice, ModelsInDoubleAndSinglePrecisionEqualTheCpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  at::manual_seed(47);
  const ModelConfig config = expert_config(8, 2);
  const TinyRow row = tiny_row(config, 48, true, at::kDouble);
  const ModelResult expected = run_experts(config, row, at::kDouble, at::kCPU);
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const double bound = dtype == at::kDouble ? 1e-6 : 1e-4;  // rotary tables are f32 in the tower on both
    const ModelResult got = run_experts(config, row, dtype, at::kCUDA);
    EXPECT_LE(relative_error(got.y, expected.y), bound);
    EXPECT_LE(relative_error(got.aux, expected.aux), bound);
    for (size_t i = 0; i < got.grads.size(); ++i)
      EXPECT_LE(relative_error(got.grads[i], expected.grads[i]), bound) << at::toString(dtype) << " weight " << i;
  }
}

// All experts are chosen: in 16 bits, rounding would send tokens elsewhere.
TEST(ExpertsOnDevice, ModelsInHalfPrecisionAreAsNearAsOnTheCpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  at::manual_seed(48);
  const ModelConfig config = expert_config(4, 4);
  const TinyRow row = tiny_row(config, 48, true, at::kDouble);
  const ModelResult exact = run_experts(config, row, at::kDouble, at::kCPU),
                    cpu = run_experts(config, row, at::kBFloat16, at::kCPU);
  const ModelResult got = run_experts(config, row, at::kBFloat16, at::kCUDA);
  expect_as_near(got, cpu, exact);
}

}  // namespace
}  // namespace hanok
