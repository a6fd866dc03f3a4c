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

double largest_rank(const LayerCosts& costs, const PipelineShape& shape, const std::vector<int64_t>& sizes) {
  std::vector<double> ranks(shape.ranks);
  size_t at = 0;
  for (int piece = 0; piece < shape.pieces(); ++piece) {
    double& sum = ranks[place_of(shape, piece).rank];
    sum += (piece == 0 ? costs.before : 0) + (piece + 1 == shape.pieces() ? costs.after : 0);
    for (int64_t i = 0; i < sizes[piece]; ++i) sum += costs.layers[at++];
  }
  return *std::max_element(ranks.begin(), ranks.end());
}

/// The best of all ways to deal `left` more layers to the pieces from `piece` on.
double least_largest_rank(
    const LayerCosts& costs, const PipelineShape& shape, std::vector<int64_t>& sizes, int piece, int64_t left) {
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
    const int layers = 2 + trial % 7, parts = 2 + trial % 4;
    if (parts > layers + 2) continue;
    LayerCosts costs;
    for (int i = 0; i < layers; ++i) costs.layers.push_back(at::rand({}).item<double>() + 0.1);
    costs.before = trial % 3 * at::rand({}).item<double>();
    costs.after = trial % 2 * 3 * at::rand({}).item<double>();
    const std::vector<int64_t> sizes = balanced_parts(costs, parts);
    EXPECT_EQ(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}), layers);
    for (int i = 1; i + 1 < parts; ++i) EXPECT_GE(sizes[i], 1);
    const PipelineShape shape{Schedule::k1F1B, parts, 1};
    std::vector<int64_t> tried(parts);
    EXPECT_NEAR(largest_rank(costs, shape, sizes), least_largest_rank(costs, shape, tried, 0, layers), 1e-12)
        << layers << " layers, " << parts << " parts";
  }
}

TEST(Balance, RanksOfSeveralPiecesAreBalancedByTheirSums) {
  at::manual_seed(62);
  for (const PipelineShape& shape : {PipelineShape{Schedule::kZeroBubbleV, 2, 2},
                                     {Schedule::kZeroBubbleV, 3, 2},
                                     {Schedule::kInterleaved, 2, 2},
                                     {Schedule::kInterleaved, 2, 3}}) {
    for (int layers = shape.pieces(); layers < shape.pieces() + 6; ++layers) {
      LayerCosts costs{.layers = std::vector<double>(layers, 1.0)};
      costs.before = layers % 3 * at::rand({}).item<double>();
      costs.after = layers % 2 * 3 * at::rand({}).item<double>();
      const std::vector<int64_t> sizes = balanced_pieces(costs, shape);
      EXPECT_EQ(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}), layers);
      for (int i = 1; i + 1 < shape.pieces(); ++i) EXPECT_GE(sizes[i], 1);
      std::vector<int64_t> tried(shape.pieces());
      EXPECT_NEAR(largest_rank(costs, shape, sizes), least_largest_rank(costs, shape, tried, 0, layers), 1e-12)
          << name(shape.schedule) << " " << shape.ranks << " x " << shape.chunks << ", " << layers << " layers";
    }
  }
}

// The 8B's 36 layers and a head of three over eight ranks: pieces balanced one by one would give a rank of the V six.
TEST(Balance, NoRankOfAVHoldsTwoLargePieces) {
  LayerCosts costs{.layers = std::vector<double>(36, 1.0), .after = 3};
  for (const auto& [ranks, most] : {std::pair{2, 20.0}, {4, 10.0}, {8, 5.0}}) {
    const PipelineShape shape{Schedule::kZeroBubbleV, ranks, 2};
    EXPECT_EQ(largest_rank(costs, shape, balanced_pieces(costs, shape)), most);
  }
  const PipelineShape eight{Schedule::kZeroBubbleV, 8, 2};
  EXPECT_EQ(largest_rank(costs, eight, balanced_parts(costs, 16)), 6);
}

std::vector<int64_t> layers_of(const char* shape,
                               const Work& work,
                               const ParallelConfig& layout,
                               StageConfig stage = {}) {
  stage.parallel = layout;
  balance_pipeline(read_model_config(concat(HANOK_SOURCE_DIR "/configs/model/", shape, ".yaml")), work, stage);
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
  EXPECT_EQ(layers_of("qwen3vl_8b", kText, {.pp = 2}), (std::vector<int64_t>{19, 17}));
  EXPECT_EQ(layers_of("qwen3vl_8b", kText, {.pp = 4}), (std::vector<int64_t>{10, 10, 9, 7}));
  const std::vector<int64_t> pictures = layers_of("qwen3vl_8b", kPictures, {.pp = 4});
  EXPECT_LT(pictures.front(), 8);
  EXPECT_EQ(std::accumulate(pictures.begin(), pictures.end(), int64_t{0}), 36);
  // A frozen tower has no backward.
  StageConfig frozen;
  frozen.trainable = {"connector.**", "decoder.**"};
  EXPECT_GT(layers_of("qwen3vl_8b", kPictures, {.pp = 4}, frozen).front(), pictures.front());
}

TEST(Balance, WhatTheConfigSaysStays) {
  EXPECT_EQ(layers_of("qwen3vl_8b", kText, {.pp = 2, .pp_layers = {30, 6}}), (std::vector<int64_t>{30, 6}));
  EXPECT_TRUE(layers_of("qwen3vl_8b", kText, {.pp = 1}).empty());
  EXPECT_ERROR(error_of([] { layers_of("qwen3vl_8b", kText, {.pp = 39}); }), ErrorKind::kConfig, "expected at most 38");
}

}  // namespace
}  // namespace hanok
