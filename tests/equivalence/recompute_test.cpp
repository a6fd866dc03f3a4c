// Recomputation and offload change no bit of a training, on any layout: losses, norms and weights of twenty steps.
#include <gtest/gtest.h>

#include <mutex>

#include "base/error.h"
#include "tests/equivalence/trajectory.h"

namespace hanok {
namespace {

struct Way {
  const char* name;
  Recompute how;
};
const Way kWays[] = {{"full", {.every = 1}},
                     {"all but attention", {.every = 1, .keep = Keep::kAttention}},
                     {"selective", {.every = 1, .keep = Keep::kResults}},
                     {"every second selective, offload", {.every = 2, .keep = Keep::kResults, .offload = true}}};

void expect_same_bits(const ParallelConfig& layout, const MeshShape& shape, const TrainingCase& what) {
  // By way and rank; the first is without recomputation.
  std::vector<std::vector<Trajectory>> found(1 + std::size(kWays), std::vector<Trajectory>(shape.world()));
  for (size_t way = 0; way < found.size(); ++way) {
    TrainingCase one = what;
    if (way > 0) one.recompute = kWays[way - 1].how;
    run_on_threads(shape.world(), [&](World& world) {
      const Groups groups = make_groups(world, Mesh(shape), layout.sequence && shape.tp > 1);
      found[way][world.rank()] = train(one, groups, at::kCPU, layout);
    });
  }
  for (size_t way = 1; way < found.size(); ++way) {
    const std::string where =
        concat(describe(shape), " ", layout.schedule, " ", layout.context, ", ", kWays[way - 1].name);
    for (int rank = 0; rank < shape.world(); ++rank) {
      const Trajectory &got = found[way][rank], &want = found[0][rank];
      EXPECT_EQ(got.losses, want.losses) << where;
      EXPECT_EQ(got.norms, want.norms) << where;
      for (const auto& [name, value] : want.weights)
        EXPECT_TRUE(at::equal(got.weights.at(name), value)) << where << name;
    }
  }
}

TEST(Recomputation, ChangesNoBitOnOneRank) {
  for (const TrainingCase& what : training_cases()) expect_same_bits({}, {}, what);
}

TEST(Recomputation, ChangesNoBitOfTensorParallelism) {
  expect_same_bits({}, {.tp = 2}, training_cases()[0]);
  expect_same_bits({.sequence = false}, {.tp = 2}, training_cases()[1]);
}

TEST(Recomputation, ChangesNoBitOfPipelines) {
  for (const char* schedule : {"1f1b", "interleaved", "zb-h1", "zb-v"})
    expect_same_bits({.pp = 2, .schedule = schedule}, {.pp = 2}, training_cases()[0]);
}

TEST(Recomputation, ChangesNoBitOfContextParallelism) {
  for (const char* context : {"gather", "ring", "heads"})
    expect_same_bits({.context = context}, {.cp = 2}, training_cases()[0]);
}

TEST(Recomputation, ChangesNoBitOfProducts) {
  expect_same_bits({.tp = 2, .pp = 2, .schedule = "zb-v"}, {.pp = 2, .tp = 2}, training_cases()[0]);
  expect_same_bits({.context = "ring"}, {.dp = 2, .cp = 2}, training_cases()[0]);
}

TEST(Recomputation, ChangesNoBitOfExperts) {
  const TrainingCase what = expert_case();
  expect_same_bits({}, {}, what);
  expect_same_bits({.ep = 2}, {.dp = 2, .ep = 2}, what);
  expect_same_bits({.ep = 2, .sequence = false}, {.tp = 2, .ep = 2}, what);
}

}  // namespace
}  // namespace hanok
