// How layers are dealt to the pieces of a pipeline: by the work, not by number.
#include "model/balance.h"

#include <gtest/gtest.h>

#include <numeric>

#include "configs/schema/read.h"
#include "model/pieces.h"
#include "tests/support/errors.h"
#include "trainer/run_stages.h"

namespace hanok {
namespace {

double largest_rank(const SublayerCosts& costs, const PipelineShape& shape, const std::vector<int64_t>& sizes) {
  std::vector<double> ranks(shape.ranks);
  size_t at = 0;
  for (int piece = 0; piece < shape.pieces(); ++piece) {
    double& sum = ranks[place_of(shape, piece).rank];
    sum += (piece == 0 ? costs.before.all() : 0) + (piece + 1 == shape.pieces() ? costs.after.all() : 0);
    for (int64_t i = 0; i < sizes[piece]; ++i) sum += costs.sublayers[at++].all();
  }
  return *std::max_element(ranks.begin(), ranks.end());
}

/// The best of all ways to deal `left` more sublayers to the pieces from `piece` on.
double least_largest_rank(
    const SublayerCosts& costs, const PipelineShape& shape, std::vector<int64_t>& sizes, int piece, int64_t left) {
  const bool is_end = piece == 0 || piece + 1 == shape.pieces();
  if (piece + 1 == shape.pieces()) {
    sizes[piece] = left;
    return largest_rank(costs, shape, sizes);
  }
  double best = 1e300;
  for (sizes[piece] = is_end ? 0 : 1; sizes[piece] <= left; ++sizes[piece]) {
    const int64_t own = sizes[piece];
    best = std::min(best, least_largest_rank(costs, shape, sizes, piece + 1, left - own));
    sizes[piece] = own;
  }
  return best;
}

TEST(Balance, NoWayIsBetter) {
  at::manual_seed(61);
  for (int trial = 0; trial < 60; ++trial) {
    const int count = 2 + trial % 7, parts = 2 + trial % 4;
    if (parts > count + 2) continue;
    SublayerCosts costs;
    for (int i = 0; i < count; ++i) costs.sublayers.push_back({.forward = at::rand({}).item<double>() + 0.1});
    costs.before.backward_input = trial % 3 * at::rand({}).item<double>();
    costs.after.backward_weight = trial % 2 * 3 * at::rand({}).item<double>();
    const std::vector<int64_t> sizes = balanced_parts(costs, parts);
    EXPECT_EQ(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}), count);
    for (int i = 1; i + 1 < parts; ++i) EXPECT_GE(sizes[i], 1);
    const PipelineShape shape{Schedule::k1F1B, parts, 1};
    std::vector<int64_t> tried(parts);
    EXPECT_NEAR(largest_rank(costs, shape, sizes), least_largest_rank(costs, shape, tried, 0, count), 1e-12)
        << count << " sublayers, " << parts << " parts";
  }
}

TEST(Balance, RanksOfSeveralPiecesAreBalancedByTheirSums) {
  at::manual_seed(62);
  for (const PipelineShape& shape : {PipelineShape{Schedule::kZeroBubbleV, 2, 2},
                                     {Schedule::kZeroBubbleV, 3, 2},
                                     {Schedule::kInterleaved, 2, 2},
                                     {Schedule::kInterleaved, 2, 3}}) {
    for (int count = shape.pieces(); count < shape.pieces() + 6; ++count) {
      SublayerCosts costs{.sublayers = std::vector<PassCosts>(count, {.forward = 1})};
      costs.before.forward = count % 3 * at::rand({}).item<double>();
      costs.after.forward = count % 2 * 3 * at::rand({}).item<double>();
      const std::vector<int64_t> sizes = balanced_pieces(costs, shape);
      EXPECT_EQ(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}), count);
      for (int i = 1; i + 1 < shape.pieces(); ++i) EXPECT_GE(sizes[i], 1);
      std::vector<int64_t> tried(shape.pieces());
      EXPECT_NEAR(largest_rank(costs, shape, sizes), least_largest_rank(costs, shape, tried, 0, count), 1e-12)
          << name(shape.schedule) << " " << shape.ranks << " x " << shape.chunks << ", " << count << " sublayers";
    }
  }
}

/// What the busiest rank works of the mean, with the 8B's 36 layers and a head that takes as long as `head` of them.
double busiest_of(const std::vector<double>& layer, double head, const PipelineShape& shape) {
  SublayerCosts costs{.after = {.forward = head}};
  for (int i = 0; i < 36; ++i)
    for (const double part : layer) costs.sublayers.push_back({.forward = part});
  return largest_rank(costs, shape, balanced_pieces(costs, shape)) / (36 + head) * shape.ranks;
}

// Over four ranks the busiest of the V works 1.2 % more than the mean, where whole layers leave it 3.9 %.
TEST(Balance, HalvesOfLayersMakeRanksAlike) {
  for (const double head : {2.5, 3.0})
    for (const int ranks : {2, 4, 8})
      for (const Schedule schedule : {Schedule::kZeroBubbleV, Schedule::kInterleaved, Schedule::k1F1B}) {
        const PipelineShape shape{schedule, ranks, schedule == Schedule::k1F1B ? 1 : 2};
        EXPECT_LE(busiest_of({0.3, 0.7}, head, shape), busiest_of({1}, head, shape) + 1e-9)
            << name(schedule) << " " << ranks << " " << head;
      }
  EXPECT_LT(busiest_of({0.3, 0.7}, 2.5, {Schedule::kZeroBubbleV, 4, 2}), 1.012);
  EXPECT_GT(busiest_of({1}, 2.5, {Schedule::kZeroBubbleV, 4, 2}), 1.035);
}

std::vector<double> layers_of(const char* shape,
                              const Work& work,
                              const ParallelConfig& layout,
                              StageConfig stage = {}) {
  const ModelConfig model = read_model_config(concat(HANOK_SOURCE_DIR "/configs/model/", shape, ".yaml"));
  stage.parallel = layout;
  balance_pipeline(model, sublayer_flops(model, work, stage), stage.parallel);
  return stage.parallel.pp_layers;
}

constexpr double kRow = 4096;
const Work kText{.tokens = kRow, .labels = kRow, .token_pairs = kRow * kRow};
const Work kPictures{.tokens = kRow,
                     .labels = kRow / 2,
                     .token_pairs = kRow * kRow,
                     .patches = 2 * kRow,
                     .patch_pairs = 2 * kRow * 1024};

TEST(Balance, TheHeadCountsAsLayersAndSoDoesTheTowerWherePicturesAre) {
  // Head and loss of the 8B's text rows take as long as three layers.
  const std::vector<double> two = layers_of("qwen3vl_8b", kText, {.pp = 2});
  EXPECT_NEAR(two[0] - two[1], 3, 0.5);
  const std::vector<double> four = layers_of("qwen3vl_8b", kText, {.pp = 4});
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(four[i], 9.75, 0.5);
  EXPECT_NEAR(four[3], 6.75, 0.5);
  const std::vector<double> pictures = layers_of("qwen3vl_8b", kPictures, {.pp = 4});
  EXPECT_LT(pictures.front(), 8);
  EXPECT_EQ(std::accumulate(pictures.begin(), pictures.end(), 0.0), 36);
  // A frozen tower has no backward.
  StageConfig frozen;
  frozen.trainable = {"connector.**", "decoder.**"};
  EXPECT_GT(layers_of("qwen3vl_8b", kPictures, {.pp = 4}, frozen).front(), pictures.front());
}

TEST(Balance, WhatTheConfigSaysStays) {
  EXPECT_EQ(layers_of("qwen3vl_8b", kText, {.pp = 2, .pp_layers = {30, 6}}), (std::vector<double>{30, 6}));
  EXPECT_EQ(layers_of("qwen3vl_8b", kText, {.pp = 2, .pp_layers = {29.5, 6.5}}), (std::vector<double>{29.5, 6.5}));
  EXPECT_TRUE(layers_of("qwen3vl_8b", kText, {.pp = 1}).empty());
  EXPECT_ERROR(error_of([] { layers_of("qwen3vl_8b", kText, {.pp = 75}); }), ErrorKind::kConfig, "expected at most 74");
}

}  // namespace
}  // namespace hanok
