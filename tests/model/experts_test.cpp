// The kernels behind layers with experts, on the CPU: against what libtorch says of the same, and finite differences.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <numeric>

#include "base/error.h"
#include "model/kernels/choose_experts.h"
#include "model/kernels/grouped_linear.h"
#include "model/kernels/order_rows.h"
#include "model/kernels/parcels.h"
#include "model/kernels/route_rows.h"
#include "parallel/grad_buffer.h"
#include "tests/model/gradients.h"
#include "tests/support/close.h"

namespace hanok {
namespace {

/// Logits of which no two of a row are near each other.
Tensor spaced_logits(int64_t tokens, int64_t experts) {
  std::vector<Tensor> rows;
  for (int64_t t = 0; t < tokens; ++t) rows.push_back(at::randperm(experts, at::kDouble) * 0.3 - 1);
  return at::stack(rows);
}

/// Packed rows 0 .. rows - 1, every fifth token none.
Tensor some_rows(int64_t tokens, int64_t rows) {
  const Tensor token = at::arange(tokens, at::kLong);
  return at::where(token.remainder(5).eq(3), at::scalar_tensor(-1, at::kLong), token.remainder(rows));
}

Tensor ends_of(const std::vector<int>& counts) {
  std::vector<int> ends(counts.size());
  std::partial_sum(counts.begin(), counts.end(), ends.begin());
  return at::tensor(ends, at::kInt);
}

TEST(ChooseExperts, TakesTheLargestSharesAndCountsThem) {
  at::manual_seed(31);
  for (const bool normalise : {true, false}) {
    const Tensor logits = spaced_logits(23, 7), row = some_rows(23, 3), assigned = at::ones({3, 7}, at::kLong);
    const ExpertChoice got = choose_experts(logits, 3, normalise, {.row_T = row, .assigned_RE = assigned});
    const Tensor share = at::softmax(logits, -1);
    auto [value, index] = share.topk(3, -1);
    if (normalise) value = value / value.sum(-1, true);
    EXPECT_CLOSE(got.share_TE, share, 7);
    EXPECT_CLOSE(got.weight_TK, value, 7);
    EXPECT_TRUE(at::equal(got.index_TK, index));
    for (int64_t r = 0; r < 3; ++r)
      for (int64_t e = 0; e < 7; ++e)
        EXPECT_EQ(assigned[r][e].item<int64_t>(),
                  1 + row.eq(r).unsqueeze(1).logical_and(index.eq(e)).sum().item<int64_t>());
  }
}

TEST(ChooseExperts, OfEqualSharesTheFirst) {
  const ExpertChoice got = choose_experts(at::zeros({2, 5}), 3, true, {.row_T = at::zeros({2}, at::kLong)});
  EXPECT_TRUE(at::equal(got.index_TK, at::arange(3, at::kLong).expand({2, 3})));
}

TEST(ChooseExperts, LogitsThatAreNoNumbersChooseSomeExpertsAllTheSame) {
  for (const double bad : {double{NAN}, double{INFINITY}}) {
    Tensor logits = at::zeros({2, 5});
    logits[1][2] = bad;
    const ExpertChoice got = choose_experts(logits, 3, true, {.row_T = at::zeros({2}, at::kLong)});
    EXPECT_TRUE(got.index_TK.ge(0).logical_and(got.index_TK.lt(5)).all().item<bool>());
    EXPECT_TRUE(got.weight_TK[1].isnan().all().item<bool>());
    EXPECT_FALSE(got.weight_TK[0].isnan().any().item<bool>());
  }
}

TEST(ChooseExperts, GradientsFollowFiniteDifferences) {
  at::manual_seed(32);
  for (const bool normalise : {true, false})
    expect_gradients(
        [&](const std::vector<Tensor>& in) {
          return choose_experts(in[0], 3, normalise, {.row_T = some_rows(9, 2)}).weight_TK;
        },
        {spaced_logits(9, 6)});
}

// The gradient that a loss adds to shares goes the way of the softmax: it is that of (shares * added).sum().
TEST(ChooseExperts, AddsTheGradientOfShares) {
  at::manual_seed(33);
  const Tensor row = some_rows(11, 2), added = random_f64({2, 6}), dy = random_f64({11, 3});
  Tensor logits = spaced_logits(11, 6).set_requires_grad(true);
  const ExpertChoice got = choose_experts(logits, 3, true, {.row_T = row, .gradient = [&] { return added; }});
  const Tensor grad = torch::autograd::grad({got.weight_TK}, {logits}, {dy})[0];
  const Tensor share = at::softmax(logits, -1), chosen = share.gather(-1, got.index_TK);
  const Tensor per_token = added.index_select(0, row.clamp_min(0)).masked_fill(row.lt(0).unsqueeze(1), 0);
  const Tensor loss = (chosen / chosen.sum(-1, true) * dy).sum() + (share * per_token).sum();
  EXPECT_CLOSE(grad, torch::autograd::grad({loss}, {logits})[0], 6);
}

TEST(OrderRows, IsAStableSortByExpertWithoutPadding) {
  at::manual_seed(34);
  for (const int64_t experts : {1, 3, 40}) {
    const Tensor index = at::randint(0, experts, {50, 4}, at::kLong), row = some_rows(50, 2);
    const RowOrder got = order_by_expert(index, row, experts);
    const Tensor key = at::where(row.lt(0).unsqueeze(1), at::scalar_tensor(experts, at::kLong), index).view({-1});
    EXPECT_TRUE(at::equal(got.slot_N, at::argsort(key, /*stable=*/true, 0, false)));
    EXPECT_TRUE(
        at::equal(got.ends_E.to(at::kLong), at::bincount(key, {}, experts + 1).narrow(0, 0, experts).cumsum(0)));
    const Tensor place = got.place_TK.view({-1});
    const Tensor placed = place.ge(0);
    EXPECT_TRUE(at::equal(placed, key.lt(experts)));
    const Tensor slots = got.slot_N.index_select(0, place.masked_select(placed));
    EXPECT_TRUE(at::equal(slots, placed.nonzero().view({-1})));
  }
}

TEST(OrderRows, OfNoTokensNothingIsPlaced) {
  const RowOrder none = order_by_expert(at::empty({0, 2}, at::kLong), at::empty({0}, at::kLong), 3);
  EXPECT_EQ(none.ends_E.sum().item<int64_t>(), 0);
  const RowOrder padding = order_by_expert(at::ones({4, 2}, at::kLong), at::full({4}, -1, at::kLong), 3);
  EXPECT_EQ(padding.ends_E.sum().item<int64_t>(), 0);
  EXPECT_TRUE(padding.place_TK.eq(-1).all().item<bool>());
}

TEST(OrderRows, WithoutRowsAllAreTokensAndChoicesOfNobodyStandNowhere) {
  const Tensor index = at::tensor({1, -1, -1, 0, 0, -1}, at::kLong).view({3, 2});
  const RowOrder got = order_by_expert(index, Tensor(), 2);
  EXPECT_TRUE(at::equal(got.slot_N, at::tensor({3, 4, 0, 1, 2, 5}, at::kLong)));
  EXPECT_TRUE(at::equal(got.place_TK, at::tensor({2, -1, -1, 0, 1, -1}, at::kLong).view({3, 2})));
  EXPECT_TRUE(at::equal(got.ends_E, at::tensor({2, 3}, at::kInt)));
}

/// K different experts for each token.
Tensor some_choices(int64_t tokens, int64_t choices, int64_t experts) {
  std::vector<Tensor> rows;
  for (int64_t t = 0; t < tokens; ++t) rows.push_back(at::randperm(experts, at::kLong).narrow(0, 0, choices));
  return at::stack(rows);
}

TEST(Parcels, AreOneForEachTokenAndRankOfItsExperts) {
  at::manual_seed(38);
  for (const int64_t ranks : {1, 2, 6, 12}) {
    const Tensor index = some_choices(30, 4, 12), row = some_rows(30, 2);
    const ParcelOrder got = order_parcels(index, row, 12, ranks);
    int64_t next = 0;
    for (int64_t r = 0; r < ranks; ++r) {
      int64_t copies = 0;
      const int64_t begin = next;
      for (int64_t t = 0; t < 30; ++t) {
        const int64_t here =
            row[t].item<int64_t>() < 0 ? 0 : index[t].div(12 / ranks, "floor").eq(r).sum().item<int64_t>();
        copies += here;
        EXPECT_EQ(got.rows.place_TK[t][r].item<int64_t>(), here > 0 ? next : -1);
        if (here == 0) continue;
        EXPECT_EQ(got.rows.slot_N[next++].item<int64_t>(), t * ranks + r);
      }
      EXPECT_TRUE(at::equal(got.counts_R2[r], at::tensor({next - begin, copies}, at::kLong)));
    }
  }
}

/// What `ranks` ranks make of parcels and send back, one after the other: expert e turns x into (e + 1) x.
Tensor by_parcels(
    const Tensor& x, const Tensor& weight, const Tensor& index, const Tensor& row, int64_t experts, int64_t ranks) {
  const ParcelOrder order = order_parcels(index, row, experts, ranks);
  const int64_t own = experts / ranks, width = x.size(1), choices = index.size(1);
  const Tensor slot = order.rows.slot_N.narrow(0, 0, order.counts_R2.select(1, 0).sum().item<int64_t>());
  const Tensor parcels = pack_parcels(x, weight, index, slot, order.rows.place_TK, experts);
  std::vector<Tensor> made;
  for (int64_t r = 0, begin = 0; r < ranks; ++r) {
    const int64_t count = order.counts_R2[r][0].item<int64_t>();
    const Tensor here = parcels.narrow(0, begin, count);
    begin += count;
    const RowOrder opened = order_by_expert(experts_of_parcels(here, width, choices), Tensor(), own);
    const Tensor slots = opened.slot_N.narrow(0, 0, order.counts_R2[r][1].item<int64_t>());
    EXPECT_EQ(slots.size(0), opened.ends_E[own - 1].item<int64_t>());
    const UnpackedParcels in = unpack_parcels(here, width, slots, opened.place_TK);
    std::vector<Tensor> outputs;
    for (int64_t e = 0, from = 0; e < own; ++e) {
      const int64_t end = opened.ends_E[e].item<int64_t>();
      outputs.push_back(in.x_ND.narrow(0, from, end - from) * static_cast<double>(r * own + e + 1));
      from = end;
    }
    made.push_back(combine_rows(at::cat(outputs), in.weight_MK, slots, opened.place_TK));
  }
  return sum_rows(at::cat(made), slot, order.rows.place_TK);
}

TEST(Parcels, CarryRowsWeightsAndTheirGradients) {
  at::manual_seed(39);
  const Tensor index = some_choices(9, 3, 6), row = some_rows(9, 2);
  const std::vector<Tensor> inputs = {random_f64({9, 5}), random_f64({9, 3})};
  const Tensor factor = (inputs[1] * (index + 1)).sum(1, true).masked_fill(row.lt(0).unsqueeze(1), 0);
  for (const int64_t ranks : {1, 2, 3, 6}) {
    const auto f = [&](const std::vector<Tensor>& in) { return by_parcels(in[0], in[1], index, row, 6, ranks); };
    EXPECT_CLOSE(f(inputs), inputs[0] * factor, 3);
    expect_gradients(f, inputs);
  }
}

TEST(Parcels, TellManyExpertsApartInSixteenBits) {
  at::manual_seed(40);
  const Tensor index = some_choices(200, 4, 1400), row = at::zeros({200}, at::kLong);
  for (const int64_t ranks : {1, 2}) {
    const ParcelOrder order = order_parcels(index, row, 1400, ranks);
    const Tensor slot = order.rows.slot_N.narrow(0, 0, order.counts_R2.select(1, 0).sum().item<int64_t>());
    const Tensor parcels = pack_parcels(
        at::ones({200, 8}, at::kBFloat16), at::ones({200, 4}, at::kBFloat16), index, slot, order.rows.place_TK, 1400);
    const Tensor token = slot.div(ranks, "floor"), rank = slot.remainder(ranks).unsqueeze(1);
    const Tensor own = index.index_select(0, token) - rank * (1400 / ranks);
    EXPECT_TRUE(
        at::equal(experts_of_parcels(parcels, 8, 4), own.masked_fill(own.lt(0).logical_or(own.ge(1400 / ranks)), -1)));
  }
}

TEST(Parcels, OfNoTokensAreNone) {
  const ParcelOrder order = order_parcels(at::empty({0, 2}, at::kLong), at::empty({0}, at::kLong), 4, 2);
  EXPECT_EQ(order.counts_R2.sum().item<int64_t>(), 0);
  const Tensor none = pack_parcels(
      at::empty({0, 3}), at::empty({0, 2}), at::empty({0, 2}, at::kLong), order.rows.slot_N, order.rows.place_TK, 4);
  EXPECT_EQ(none.size(0), 0);
  EXPECT_EQ(experts_of_parcels(none, 3, 2).numel(), 0);
  EXPECT_THROW(order_parcels(at::zeros({2, 2}, at::kLong), at::zeros({2}, at::kLong), 5, 2), Error);
}

TEST(RouteRows, GradientsFollowFiniteDifferences) {
  at::manual_seed(35);
  const Tensor index = at::stack({at::randint(0, 3, {13}, at::kLong), at::randint(3, 5, {13}, at::kLong)}, 1);
  const RowOrder order = order_by_expert(index, some_rows(13, 2), 5);
  const int64_t used = order.ends_E[4].item<int64_t>();
  expect_gradients(
      [&](const std::vector<Tensor>& in) {
        return gather_rows(in[0], order.slot_N, order.place_TK).narrow(0, 0, used);
      },
      {random_f64({13, 6})});
  const Tensor behind = random_f64({26 - used, 6});  // their gradients may be anything
  expect_gradients(
      [&](const std::vector<Tensor>& in) {
        return combine_rows(at::cat({in[0], behind}), in[1], order.slot_N, order.place_TK);
      },
      {random_f64({used, 6}), random_f64({13, 2})});
}

TEST(RouteRows, RowsOfPaddingAreNeverRead) {
  const Tensor row = at::tensor({0, -1, 0}, at::kLong);
  const RowOrder order = order_by_expert(at::tensor({1, 0, 0}, at::kLong).view({3, 1}), row, 2);
  Tensor made = at::ones({3, 4});
  made[2].fill_(NAN);  // what stands behind the last expert
  const Tensor y = combine_rows(made, at::full({3, 1}, 2.0), order.slot_N, order.place_TK);
  EXPECT_TRUE(at::equal(y, at::tensor({2.0f, 0.0f, 2.0f}).unsqueeze(1).expand({3, 4})));
}

TEST(GroupedLinear, GradientsFollowFiniteDifferences) {
  at::manual_seed(36);
  for (const std::vector<int>& counts : std::vector<std::vector<int>>{{4, 0, 5, 1}, {0, 0, 10, 0}, {0, 0, 0, 0}}) {
    const Tensor ends = ends_of(counts);
    const int64_t used = ends[3].item<int64_t>();
    const auto f = [&](const std::vector<Tensor>& in) { return grouped_linear(in[0], in[1], ends).narrow(0, 0, used); };
    const std::vector<Tensor> inputs = {random_f64({12, 5}), random_f64({4, 3, 5})};
    if (used > 0) expect_gradients(f, inputs);
    Tensor y = at::empty({0, 3}, at::kDouble);
    for (int64_t e = 0, begin = 0; e < 4; begin += counts[e++])
      y = at::cat({y, at::mm(inputs[0].narrow(0, begin, counts[e]), inputs[1][e].t())});
    EXPECT_CLOSE(f(inputs), y, 5);
  }
}

TEST(GroupedLinear, WeightGradientsGoToTheBufferAndMayBePutOff) {
  at::manual_seed(37);
  const Tensor ends = ends_of({3, 0, 4}), x = random_f64({7, 5}).to(at::kBFloat16);
  const Tensor weight = random_f64({3, 2, 5}).to(at::kBFloat16).set_requires_grad(true);
  Tensor buffer = at::ones({3, 2, 5});
  attach_grad_buffer(weight, buffer);
  WeightGradients deferred;
  const auto backward = [&] { grouped_linear(x, weight, ends, &deferred).sum().backward(); };
  backward();
  const Tensor once = buffer.clone();
  EXPECT_GT((once - 1).abs().max().item<double>(), 0.1);
  EXPECT_TRUE(at::equal(once[1], at::ones({2, 5})));  // an expert without tokens
  deferred.defer(true);
  backward();
  EXPECT_TRUE(at::equal(buffer, once));
  for (const WeightGradients::Work& work : deferred.take()) {
    const at::NoGradGuard no_grad;
    work();
  }
  EXPECT_CLOSE(buffer - 1, (once - 1) * 2, 7);
  deferred.defer(false);
  begin_gradient(weight);  // what the buffer holds is of no more use
  backward();
  EXPECT_CLOSE(buffer, once - 1, 7);
  detach_grad_buffer(weight);
}

TEST(GroupedLinear, EndsThatDoNotFitAreNamed) {
  const Tensor x = at::ones({4, 5}), weight = at::ones({2, 3, 5});
  EXPECT_THROW(grouped_linear(x, weight, ends_of({3, 2})), Error);
  EXPECT_THROW(grouped_linear(x, weight, ends_of({3, -1})), Error);
  EXPECT_THROW(grouped_linear(x, weight, ends_of({4})), Error);
}

}  // namespace
}  // namespace hanok
