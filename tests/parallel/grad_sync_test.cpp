#include "parallel/grad_sync.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/error.h"
#include "parallel/grad_layout.h"
#include "parallel/grad_readiness.h"
#include "tests/parallel/comm_suite.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

ParamSpec cut(std::string name, std::vector<int64_t> shape, int dim, std::vector<Segment> segments) {
  return {.name = std::move(name), .shape = std::move(shape), .cut_dim = dim, .segments = std::move(segments)};
}

/// One weight of every kind: whole with complete and with partial gradients, cut per segment on either dim with fewer
/// kv heads than ranks, an uneven vocabulary, a frozen one, and one that no backward reaches.
std::vector<ParamSpec> specs() {
  const std::vector<Segment> qkv = {{4 * 3, 3}, {2 * 3, 3}, {2 * 3, 3}};
  ParamSpec vocab = cut("embed", {37, 5}, 0, {{37, 1}});
  vocab.uneven = true;
  ParamSpec norm{.name = "norm", .shape = {7}, .sum_grad_over_tp = true};
  return {vocab,
          norm,
          cut("qkv", {24, 5}, 0, qkv),
          cut("qkv.bias", {24}, 0, qkv),
          {.name = "frozen", .shape = {1000}},
          cut("out", {5, 24}, 1, qkv),
          {.name = "whole", .shape = {3, 11}},
          {.name = "unreached", .shape = {40}, .sum_grad_over_tp = true}};
}

ParamTable make_table(const std::vector<ParamSpec>& all, const Groups& groups, at::ScalarType dtype) {
  ParamTable params;
  for (const ParamSpec& spec : all) {
    params.push_back({.spec = spec,
                      .value = at::ones(local_shape(spec, groups), at::TensorOptions().dtype(dtype)),
                      .trainable = spec.name != "frozen"});
  }
  return params;
}

/// What rank (dp, tp) contributes to the gradient of the global tensor: small integers, so that sums are exact in any
/// order.
Tensor contribution(const ParamSpec& spec, int dp, int tp) {
  if (spec.name == "unreached") return at::zeros(spec.shape, at::kDouble);
  return sample(at::kLong, spec.shape, 50, dp * 100 + tp).to(at::kDouble).sub_(15);
}

Tensor local_piece(const Tensor& global, const ParamSpec& spec, int index, int parts) {
  Tensor local = at::empty(local_shape(spec, index, parts), global.options());
  for (const FlatRun& run : flat_runs(spec, index, parts)) {
    local.view(-1).narrow(0, run.local_begin, run.size).copy_(global.view(-1).narrow(0, run.global_begin, run.size));
  }
  return local;
}

/// The gradient that one micro-batch leaves on (dp, tp): complete on every rank unless it is summed over tp.
Tensor local_grad(const ParamSpec& spec, int dp, int tp, int parts) {
  if (spec.cut_dim < 0) return contribution(spec, dp, spec.sum_grad_over_tp ? tp : 0);
  Tensor local = local_piece(contribution(spec, dp, 0), spec, tp, parts);
  const Tensor own = local_piece(contribution(spec, dp, tp), spec, tp, parts);
  for (const LocalRange& range : local_ranges(spec, tp, parts)) {
    if (range.replicas == 1) continue;
    local.narrow(spec.cut_dim, range.local_begin, range.size)
        .copy_(own.narrow(spec.cut_dim, range.local_begin, range.size));
  }
  return local;
}

/// The summed gradient that (any dp, tp) must hold.
Tensor expected_grad(const ParamSpec& spec, int num_dp, int tp, int parts) {
  Tensor sum = at::zeros(spec.cut_dim < 0 ? spec.shape : local_shape(spec, tp, parts), at::kDouble);
  for (int dp = 0; dp < num_dp; ++dp) {
    if (spec.cut_dim < 0) {
      for (int other = 0; other < (spec.sum_grad_over_tp ? parts : 1); ++other)
        sum += local_grad(spec, dp, other, parts);
      continue;
    }
    for (const LocalRange& range : local_ranges(spec, tp, parts)) {
      const int first = range.replicas == 1 ? tp : tp - range.replica_index;
      for (int other = first; other < first + range.replicas; ++other) {
        // Segments lie alike on all ranks of a replica set.
        sum.narrow(spec.cut_dim, range.local_begin, range.size)
            .add_(local_grad(spec, dp, other, parts).narrow(spec.cut_dim, range.local_begin, range.size));
      }
    }
  }
  return sum;
}

double expected_squared_norm(const std::vector<ParamSpec>& all, int num_dp, int parts) {
  double sum = 0;
  for (const ParamSpec& spec : all) {
    if (spec.name == "frozen") continue;
    for (int tp = 0; tp < (spec.cut_dim < 0 ? 1 : parts); ++tp) {
      const Tensor squares = expected_grad(spec, num_dp, tp, parts).square();
      if (spec.cut_dim < 0) sum += squares.sum().item<double>();
      if (spec.cut_dim < 0) continue;
      for (const LocalRange& range : local_ranges(spec, tp, parts)) {
        if (range.replica_index == 0)
          sum += squares.narrow(spec.cut_dim, range.local_begin, range.size).sum().item<double>();
      }
    }
  }
  return sum;
}

/// A backward whose gradients are exactly those of local_grad.
void run_backward(ParamTable& params, int dp, int tp, int parts) {
  Tensor loss = at::zeros({}, at::kDouble);
  for (Param& param : params) {
    if (param.spec.name == "unreached") continue;
    loss = loss + (param.value.to(at::kDouble) * local_grad(param.spec, dp, tp, parts)).sum();
  }
  loss.backward();
}

struct Layout2d {
  int dp, tp;
};
constexpr Layout2d kLayouts[] = {{1, 1}, {2, 1}, {3, 1}, {1, 2}, {1, 4}, {2, 2}, {3, 2}, {2, 4}, {4, 1}};

void expect_right_sums(const Layout2d& layout, at::ScalarType dtype, at::ScalarType accumulate) {
  run_on_threads(layout.dp * layout.tp, [&](World& world) {
    const Groups groups = make_groups(world, Mesh({.dp = layout.dp, .tp = layout.tp}), true);
    const std::string where =
        concat(describe(groups.mesh.shape()), " ", at::toString(dtype), " into ", at::toString(accumulate));
    ParamTable params = make_table(specs(), groups, dtype);
    GradSync sync(params, groups, accumulate);
    for (int step = 0; step < 2; ++step) {
      sync.start();
      for (int micro_batch = 0; micro_batch < 3; ++micro_batch)
        run_backward(params, groups.at.dp, groups.at.tp, layout.tp);
      sync.finish();
      EXPECT_EQ(sync.shard().scalar_type(), accumulate);
      EXPECT_EQ(sync.squared_norm().item<double>(), 9 * expected_squared_norm(specs(), layout.dp, layout.tp)) << where;
      for (size_t i = 0; i < params.size(); ++i) {
        if (!params[i].trainable) continue;
        const Tensor want = expected_grad(params[i].spec, layout.dp, groups.at.tp, layout.tp) * 3;
        EXPECT_TRUE(at::equal(sync.full_grad(static_cast<int>(i)), want.to(accumulate)))
            << where << " " << params[i].spec.name;
      }
    }
  });
}

TEST(GradSync, SumsEveryKindOfWeightOverItsRanksAndCountsItOnceInTheNorm) {
  for (const Layout2d& layout : kLayouts) expect_right_sums(layout, at::kFloat, at::kFloat);
}

TEST(GradSync, WeightsOfAnotherDtypeAreAccumulatedInTheBuffersDtype) {
  for (const Layout2d& layout : {Layout2d{1, 1}, Layout2d{3, 2}}) {
    expect_right_sums(layout, at::kBFloat16, at::kFloat);
    expect_right_sums(layout, at::kHalf, at::kFloat);
    expect_right_sums(layout, at::kFloat, at::kDouble);
    expect_right_sums(layout, at::kDouble, at::kDouble);
  }
}

/// As the trainer calls it: the last of three backwards is announced.
void expect_right_sums_overlapping(const Layout2d& layout, bool announces_end, int64_t bucket) {
  run_on_threads(layout.dp * layout.tp, [&](World& world) {
    const Groups groups = make_groups(world, Mesh({.dp = layout.dp, .tp = layout.tp}), true);
    ParamTable params = make_table(specs(), groups, at::kFloat);
    GradSync sync(params, groups, {.overlap = true, .bucket_elements = bucket});
    std::vector<int> all(params.size());
    std::iota(all.begin(), all.end(), 0);
    for (int step = 0; step < 2; ++step) {
      sync.start();
      for (int micro_batch = 0; micro_batch < 3; ++micro_batch) {
        if (micro_batch == 2) sync.expect_last(all, false);
        run_backward(params, groups.at.dp, groups.at.tp, layout.tp);
      }
      if (announces_end) sync.expect_no_more(all);
      sync.finish();
      EXPECT_EQ(sync.squared_norm().item<double>(), 9 * expected_squared_norm(specs(), layout.dp, layout.tp));
      for (size_t i = 0; i < params.size(); ++i) {
        if (!params[i].trainable) continue;
        const Tensor want = expected_grad(params[i].spec, layout.dp, groups.at.tp, layout.tp) * 3;
        EXPECT_TRUE(at::equal(sync.full_grad(static_cast<int>(i)), want.to(at::kFloat))) << params[i].spec.name;
      }
    }
  });
}

TEST(GradSync, BucketsThatLeaveDuringTheBackwardAreTheSameSums) {
  for (const Layout2d& layout : kLayouts)
    for (const int64_t bucket : {1, 150, 1 << 20})
      for (const bool announces_end : {false, true}) expect_right_sums_overlapping(layout, announces_end, bucket);
}

TEST(GradSync, RanksMayDifferInWhatABackwardReaches) {
  run_on_threads(3, [](World& world) {
    const Groups groups = make_groups(world, Mesh({.dp = 3}), false);
    ParamTable params;
    for (const char* name : {"tower", "embed", "head"})
      params.push_back({.spec = {.name = name, .shape = {5}}, .value = at::ones({5})});
    GradSync sync(params, groups, {.overlap = true, .bucket_elements = 1});
    sync.start();
    sync.expect_last({0, 1, 2}, false);
    // Rank 0 has pictures, rank 1 has none, rank 2 has nothing at all.
    if (groups.rank == 0) (params[0].value.sum() * 2 + params[1].value.sum() + params[2].value.sum()).backward();
    if (groups.rank == 1) (params[1].value.sum() + params[2].value.sum()).backward();
    if (groups.rank < 2) sync.expect_no_more({0, 1, 2});
    sync.finish();
    for (const int param : {0, 1, 2})
      EXPECT_TRUE(at::equal(sync.full_grad(param), at::full({5}, 2.0f))) << params[param].spec.name;
  });
}

TEST(GradSync, AGradientThatComesAfterItsBucketHasLeftIsAnError) {
  run_on_threads(2, [](World& world) {
    const Groups groups = make_groups(world, Mesh({.dp = 2}), false);
    ParamTable params(1);
    params[0] = {.spec = {.name = "late", .shape = {4}}, .value = at::ones({4})};
    GradSync sync(params, groups, {.overlap = true});
    sync.start();
    sync.expect_last({0}, false);
    params[0].value.sum().backward();
    EXPECT_ERROR(error_of([&] { params[0].value.sum().backward(); }), ErrorKind::kShape, "late: got a gradient after");
  });
}

TEST(GradSync, GradientsMayTravelInAnotherDtype) {
  run_on_threads(2, [](World& world) {
    const Groups groups = make_groups(world, Mesh({.dp = 2}), false);
    ParamTable params(2);
    params[0] = {.spec = {.name = "a", .shape = {4}}, .value = at::ones({4})};
    params[1] = {.spec = {.name = "b", .shape = {70}}, .value = at::ones({70})};
    GradSync sync(params, groups, {.reduce = at::kBFloat16, .bucket_elements = 1});
    sync.start();
    for (int i = 0; i < 257; ++i) (params[0].value.sum() + params[1].value.sum() * 2).backward();
    sync.finish();
    EXPECT_EQ(sync.shard().scalar_type(), at::kFloat);
    EXPECT_EQ(sync.full_grad(0)[0].item<float>(), 512);    // 257 is 256 in bf16
    EXPECT_EQ(sync.full_grad(1)[69].item<float>(), 1024);  // 514 is 512
  });
}

TEST(GradSync, NewWeightsComeWhenTheyAreAskedFor) {
  run_on_threads(2, [](World& world) {
    const Groups groups = make_groups(world, Mesh({.dp = 2}), false);
    ParamTable params;
    for (const char* name : {"a", "b", "c"})
      params.push_back({.spec = {.name = name, .shape = {64}}, .value = at::zeros({64})});
    GradSync sync(params, groups, {.overlap = true, .bucket_elements = 1});
    ASSERT_EQ(sync.own_weights().size(), 3u);
    sync.update_values([](const WeightBlock& block) { Tensor(block.weights).fill_(7); });
    const auto is_whole = [&](int param) { return params[param].value.eq(7).all().item<bool>(); };
    EXPECT_FALSE(is_whole(0));
    // One rank asks for less than the other.
    sync.await_values(std::vector<Tensor>{params[groups.rank].value});
    EXPECT_TRUE(is_whole(0));
    sync.await_values();
    EXPECT_TRUE(is_whole(1) && is_whole(2));
  });
}

TEST(GradReadiness, BucketsLeaveFromTheLastOneOnAndOnlyWhenComplete) {
  const Groups groups = make_planned_groups(Mesh({.dp = 2}), 0, false);
  ParamTable params;
  for (const char* name : {"first", "second", "third"})
    params.push_back({.spec = {.name = name, .shape = {64}}, .value = at::zeros({64})});
  GradReadiness readiness(lay_out_gradients(params, groups, 1), params.size());
  readiness.backward_passed(2);  // of an earlier micro-batch
  EXPECT_FALSE(readiness.take_next());
  for (int i = 0; i < 3; ++i) readiness.expect_last(i, false);
  readiness.backward_passed(1);
  EXPECT_FALSE(readiness.take_next()) << "the third has not come";
  readiness.put_off(2);
  readiness.backward_passed(2);
  EXPECT_FALSE(readiness.take_next()) << "its product was put off";
  readiness.added(2);
  EXPECT_EQ(readiness.take_next(), 2u);
  EXPECT_EQ(readiness.take_next(), 1u);
  EXPECT_FALSE(readiness.take_next());
  EXPECT_TRUE(readiness.has_left(1) && !readiness.has_left(0));
  EXPECT_EQ(readiness.take_next(/*even_if_incomplete=*/true), 0u);
  EXPECT_FALSE(readiness.take_next(true));
  readiness.start();
  EXPECT_FALSE(readiness.has_left(2));
  readiness.put_off(0);
  for (int i = 0; i < 3; ++i) readiness.expect_last(i, /*only_put_off=*/true);
  EXPECT_EQ(readiness.take_next(), 2u);
  EXPECT_EQ(readiness.take_next(), 1u);
  EXPECT_FALSE(readiness.take_next());
  readiness.added(0);
  EXPECT_EQ(readiness.take_next(), 0u);
  readiness.start();
  readiness.expect_last(2, false);
  readiness.put_off(2);
  readiness.added(2);
  EXPECT_FALSE(readiness.take_next()) << "the backward that put it off is not through";
  readiness.backward_passed(2);
  EXPECT_EQ(readiness.take_next(), 2u);
}

TEST(GradSync, ManySmallGradientsAreNotLostInBf16) {
  const Groups groups = make_single_groups();
  ParamTable params(1);
  params[0] = {.spec = {.name = "w", .shape = {4}}, .value = at::ones({4}, at::kBFloat16)};
  GradSync sync(params, groups, at::kFloat);
  sync.start();
  for (int i = 0; i < 400; ++i) params[0].value.sum().backward();
  sync.finish();
  EXPECT_EQ(sync.full_grad(0)[3].item<float>(), 400);  // bf16 would stop at 256
  EXPECT_FALSE(params[0].value.grad().defined());
}

TEST(GradSync, NothingOfTheStepBeforeIsLeft) {
  for (const auto dtype : {at::kBFloat16, at::kFloat}) {
    for (const int ranks : {1, 2}) {
      run_on_threads(ranks, [&](World& world) {
        const Groups groups = make_groups(world, Mesh({.dp = world.size()}), false);
        ParamTable params(3);
        for (int i = 0; i < 3; ++i)
          params[i] = {.spec = {.name = concat("w", i), .shape = {37}}, .value = at::ones({37}, dtype)};
        GradSync sync(params, groups, {.overlap = true, .bucket_elements = 1});
        for (const int reached : {2, 1, 0, 2}) {
          sync.start();
          for (int i = 0; i < 3; ++i) (params[reached].value.sum() * 2 + params[0].value.sum()).backward();
          sync.finish();
          double squares = 0;
          for (int i = 0; i < 3; ++i) {
            const float want = static_cast<float>(ranks * 3 * ((i == reached ? 2 : 0) + (i == 0 ? 1 : 0)));
            squares += 37 * want * want;
            EXPECT_TRUE(at::equal(sync.full_grad(i), at::full({37}, want))) << i << " of " << reached;
          }
          EXPECT_EQ(sync.squared_norm().item<double>(), squares) << "padding counts as zero";
        }
      });
    }
  }
}

TEST(GradSync, FullPrecisionGradientsAreAddedInPlace) {
  const Groups groups = make_single_groups();
  ParamTable params(1);
  params[0] = {.spec = {.name = "w", .shape = {4}}, .value = at::ones({4})};
  GradSync sync(params, groups, at::kFloat);
  sync.start();
  const void* const memory = params[0].value.grad().data_ptr();
  for (int i = 0; i < 3; ++i) (params[0].value * 2).sum().backward();
  EXPECT_EQ(params[0].value.grad().data_ptr(), memory);
  EXPECT_EQ(sync.shard().data_ptr(), memory);
  EXPECT_EQ(sync.shard()[0].item<float>(), 6);
  params[0].value.mutable_grad().reset();  // as an optimizer of somebody else might
  sync.start();
  params[0].value.sum().backward();
  sync.finish();
  EXPECT_EQ(sync.shard()[0].item<float>(), 1);
}

TEST(GradSync, FrozenWeightsTakeNoMemoryAndNoGradient) {
  const Groups groups = make_single_groups();
  ParamTable params = make_table(specs(), groups, at::kFloat);
  params[4].value.set_requires_grad(true);
  GradSync sync(params, groups, at::kFloat);
  EXPECT_FALSE(params[4].value.requires_grad());
  EXPECT_TRUE(params[0].value.requires_grad());
  int64_t trainable = 0;
  for (const Param& param : params) trainable += param.trainable ? (param.value.numel() + 31) / 32 * 32 : 0;
  EXPECT_EQ(sync.shard().numel(), trainable);
  EXPECT_THROW(sync.full_grad(4), Error);
}

TEST(GradSync, WithNothingTrainableEveryCallReturns) {
  run_on_threads(2, [](World& world) {
    const Groups groups = make_groups(world, Mesh({.dp = 2}), false);
    ParamTable params(1);
    params[0] = {.spec = {.name = "w", .shape = {4}}, .value = at::ones({4}), .trainable = false};
    GradSync sync(params, groups, at::kFloat);
    sync.start();
    sync.finish();
    EXPECT_EQ(sync.squared_norm().item<double>(), 0);
    sync.scatter_values(sync.shard());
    EXPECT_EQ(sync.shard().numel(), 0);
  });
}

TEST(GradSync, HooksEndWithTheObject) {
  const Groups groups = make_single_groups();
  ParamTable params(2);
  params[0] = {.spec = {.name = "a", .shape = {4}}, .value = at::ones({4}, at::kBFloat16)};
  params[1] = {.spec = {.name = "b", .shape = {4}}, .value = at::ones({4}, at::kBFloat16)};
  { GradSync sync(params, groups, at::kFloat); }
  for (Param& param : params) {
    EXPECT_FALSE(param.value.grad().defined());
    param.value.sum().backward();
    EXPECT_EQ(param.value.grad()[0].item<float>(), 1);
  }
}

TEST(GradSync, UpdatedValuesReachEveryRank) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Layout2d& layout : kLayouts) {
      run_on_threads(layout.dp * layout.tp, [&](World& world) {
        const Groups groups = make_groups(world, Mesh({.dp = layout.dp, .tp = layout.tp}), false);
        ParamTable params = make_table(specs(), groups, dtype);
        GradSync sync(params, groups, at::kFloat);
        const auto value_of = [](int param, int64_t i) { return static_cast<float>((param * 31 + i) % 251); };
        Tensor values = at::full_like(sync.shard(), -1);
        for (const ShardPiece& piece : sync.pieces()) {
          for (int64_t i = 0; i < piece.size; ++i) {
            values[piece.shard_begin + i] = value_of(piece.param, piece.local_begin + i);
          }
        }
        sync.scatter_values(values);
        for (size_t p = 0; p < params.size(); ++p) {
          const Tensor got = params[p].value.detach().to(at::kFloat).view(-1);
          for (int64_t i = 0; i < got.numel(); ++i) {
            const float want = params[p].trainable ? value_of(static_cast<int>(p), i) : 1;
            ASSERT_EQ(got[i].item<float>(), want) << params[p].spec.name << " " << i;
          }
          EXPECT_EQ(params[p].value.scalar_type(), dtype);
        }
        EXPECT_THROW(sync.scatter_values(at::zeros({1})), Error);
      });
    }
  }
}

TEST(GradSync, WeightsMoveIntoOneBufferWithTheirValues) {
  ParamTable params(2);
  params[0] = {.spec = {.name = "a", .shape = {3}}, .value = at::full({3}, 2.0)};
  params[1] = {.spec = {.name = "b", .shape = {40}}, .value = at::arange(40, at::kFloat)};
  const Tensor handle = params[1].value;  // a layer's own
  const GradSync sync(params, make_single_groups(), at::kFloat);
  EXPECT_EQ(handle.data_ptr(), params[1].value.data_ptr());
  EXPECT_TRUE(at::equal(handle.detach(), at::arange(40, at::kFloat)));
  const std::vector<WeightBlock> own = sync.own_weights();
  ASSERT_EQ(own.size(), 1u);
  EXPECT_EQ(own[0].weights.data_ptr(), params[0].value.data_ptr());
  EXPECT_EQ(static_cast<float*>(own[0].weights.data_ptr()) + 32, handle.data_ptr());
}

TEST(GradSync, RefusesWeightsOfSeveralDtypes) {
  ParamTable params(2);
  params[0] = {.spec = {.name = "a", .shape = {40}}, .value = at::ones({40}, at::kBFloat16)};
  params[1] = {.spec = {.name = "b", .shape = {40}}, .value = at::ones({40})};
  EXPECT_THROW(GradSync(params, make_single_groups(), at::kFloat), Error);
}

TEST(GradSync, ExpertsAreSummedOverTheRanksThatHoldTheSameExperts) {
  const MeshShape shape{.dp = 2, .tp = 2, .ep = 2};
  run_on_threads(4, [&](World& world) {
    const Groups groups = make_groups(world, Mesh(shape), true);
    ParamSpec experts = cut("experts", {4, 3}, 0, {{4, 1}});
    experts.cut_axis = Axis::kEp;
    const ParamSpec dense{.name = "dense", .shape = {5}};
    ParamTable params = make_table({experts, dense}, groups, at::kFloat);
    GradSync sync(params, groups, at::kFloat);
    const auto grad_on = [&](int rank) { return sample(at::kLong, {2, 3}, 60, rank).to(at::kFloat); };
    sync.start();
    ((params[0].value * grad_on(groups.rank)).sum() + params[1].value.sum()).backward();
    sync.finish();
    Tensor want = at::zeros({2, 3});
    double squares = 5 * 4;  // dense: 1 from each of two dp ranks, counted once over tp
    for (int ep = 0; ep < 2; ++ep) {
      Tensor sum = at::zeros({2, 3});
      for (int rank = 0; rank < 4; ++rank) {
        if (groups.mesh.coordinates(rank).ep == ep) sum += grad_on(rank);
      }
      squares += sum.square().sum().item<double>();
      if (ep == groups.at.ep) want = sum;
    }
    EXPECT_TRUE(at::equal(sync.full_grad(0), want));
    EXPECT_TRUE(at::equal(sync.full_grad(1), at::full({5}, 2.0f)));
    EXPECT_EQ(sync.squared_norm().item<double>(), squares);
    Tensor values = at::full_like(sync.shard(), 7);
    sync.scatter_values(values);
    EXPECT_TRUE(params[0].value.eq(7).all().item<bool>() && params[1].value.eq(7).all().item<bool>());
  });
}

TEST(ShardPieces, CoverEveryTrainableValueOnceOnAlignedShards) {
  const ParamTable params = make_table(specs(), make_single_groups(), at::kFloat);
  for (int parts = 1; parts <= 9; ++parts) {
    for (const int64_t bucket : {1, 150, 1 << 20}) {
      std::vector<std::vector<int>> seen;
      for (const Param& param : params) seen.emplace_back(param.value.numel(), 0);
      int64_t size = 0;
      for (int index = 0; index < parts; ++index) {
        const Groups groups = make_planned_groups(Mesh({.dp = parts}), index, false);
        const GradLayout layout = lay_out_gradients(params, groups, bucket);
        EXPECT_EQ(layout.size, parts * layout.shard_size);
        EXPECT_TRUE(size == 0 || size == layout.size) << "every rank must lay them out alike";
        size = layout.size;
        int64_t end = 0;
        for (const ShardPiece& piece : pieces_of(layout)) {
          EXPECT_GE(piece.shard_begin, end);
          EXPECT_TRUE(piece.shard_begin % 32 == 0) << "parameters and shards begin at multiples of 32";
          EXPECT_GT(piece.size, 0);
          end = piece.shard_begin + piece.size;
          for (int64_t i = 0; i < piece.size; ++i) ++seen[piece.param][piece.local_begin + i];
        }
        EXPECT_LE(end, layout.shard_size);
      }
      for (size_t p = 0; p < params.size(); ++p) {
        for (const int count : seen[p])
          ASSERT_EQ(count, params[p].trainable ? 1 : 0) << params[p].spec.name << " parts " << parts;
      }
    }
  }
}

TEST(GradLayout, SharedWeightsComeFirstAndTheOthersInTheOrderOfTheTable) {
  const Groups groups = make_planned_groups(Mesh({.dp = 2, .tp = 4}), 0, true);
  const ParamTable params = make_table(specs(), groups, at::kFloat);
  const GradLayout layout = lay_out_gradients(params, groups, 1);
  std::vector<std::string> names;
  for (const GradBucket& bucket : layout.buckets) {
    ASSERT_EQ(bucket.places.size(), 1u);
    names.push_back(params[bucket.places[0].param].spec.name);
  }
  // Two kv heads lie on four ranks.
  EXPECT_EQ(names, (std::vector<std::string>{"norm", "qkv", "qkv.bias", "out", "unreached", "embed", "whole"}));
}

TEST(GradSync, StridedWeightsAreRefusedByName) {
  ParamTable params(1);
  params[0] = {.spec = {.name = "decoder.head.weight", .shape = {3, 4}}, .value = at::ones({4, 3}).t()};
  EXPECT_ERROR(error_of([&] { GradSync sync(params, make_single_groups(), at::kFloat); }),
               ErrorKind::kShape,
               "decoder.head.weight");
}

}  // namespace
}  // namespace hanok
