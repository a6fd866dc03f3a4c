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

/// The largest sum of the best of all ways, tried one by one.
double least_largest(const LayerCosts& costs, int parts, size_t first = 0, bool is_first = true) {
  const size_t layers = costs.layers.size();
  const double extra = is_first ? costs.before : 0;
  if (parts == 1)
    return extra + costs.after +
           std::accumulate(costs.layers.begin() + static_cast<int64_t>(first), costs.layers.end(), 0.0);
  double best = 1e300, own = extra;
  for (size_t end = first; end <= layers; own += end < layers ? costs.layers[end] : 0, ++end)
    if (end > first || is_first) best = std::min(best, std::max(own, least_largest(costs, parts - 1, end, false)));
  return best;
}

double largest(const LayerCosts& costs, const std::vector<int64_t>& sizes) {
  double most = 0;
  size_t at = 0;
  for (size_t part = 0; part < sizes.size(); ++part) {
    double sum = (part == 0 ? costs.before : 0) + (part + 1 == sizes.size() ? costs.after : 0);
    for (int64_t i = 0; i < sizes[part]; ++i) sum += costs.layers[at++];
    most = std::max(most, sum);
  }
  return most;
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
    EXPECT_NEAR(largest(costs, sizes), least_largest(costs, parts), 1e-12)
        << layers << " layers, " << parts << " parts";
  }
}

std::vector<int64_t> layers_of(const char* shape,
                               const Work& work,
                               const ParallelConfig& layout,
                               StageConfig stage = {}) {
  stage.parallel = layout;
  return balanced_layers(read_model_config(concat(HANOK_SOURCE_DIR "/configs/model/", shape, ".yaml")), stage, work);
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
