// What pipelines alone must get right: frozen stages, tied ends, and canaries.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cstring>
#include <iostream>
#include <mutex>

#include "tests/equivalence/trajectory.h"

namespace hanok {
namespace {

struct Result {
  Agreement worst;
  std::vector<std::map<std::string, Tensor>> weights;  // by rank
};

Result on_pipeline(const ParallelConfig& layout, const TrainingCase& what, const Fault& fault = {}) {
  const Trajectory reference = train(what, make_single_groups(), at::kCPU);
  const Mesh mesh({.pp = static_cast<int>(layout.pp), .tp = static_cast<int>(layout.tp)});
  Result out;
  out.weights.resize(mesh.world());
  std::mutex mutex;
  run_on_threads(mesh.world(), [&](World& world) {
    const Groups groups = make_groups(world, mesh, layout.tp > 1);
    const Trajectory got = train(what, groups, at::kCPU, layout, fault);
    const Agreement agreement = compare(got, reference, what, groups);
    const std::lock_guard lock(mutex);
    out.worst.include(agreement);
    out.weights[world.rank()] = got.weights;
  });
  std::cout << describe(mesh.shape()) << " " << layout.schedule << ", " << what.name << ": " << out.worst.text()
            << "\n";
  return out;
}

const char* const kSchedules[] = {"1f1b", "interleaved", "zb-h1", "zb-v"};

TEST(Pipeline, FrozenStagesPassGradientsOn) {
  const TrainingCase connector{.name = "connector alone", .trainable = {"connector.**"}};
  for (const char* schedule : kSchedules)
    EXPECT_TRUE(on_pipeline({.pp = 2, .schedule = schedule}, connector).worst.ok) << schedule;
}

TEST(Pipeline, StagesBeforeTheFirstThatTrainsHaveNoBackward) {
  const TrainingCase end{.name = "last layer alone", .tied = false, .trainable = {"decoder.layers.2.**"}};
  for (const char* schedule : kSchedules)
    EXPECT_TRUE(on_pipeline({.pp = 2, .schedule = schedule}, end).worst.ok) << schedule;
}

TEST(Pipeline, BothEndsHoldTheSameBitsOfATiedTable) {
  const Result got = on_pipeline({.tp = 2, .pp = 2}, training_cases()[0]);
  EXPECT_TRUE(got.worst.ok);
  for (int tp = 0; tp < 2; ++tp) {
    const Tensor first = got.weights[tp].at("decoder.embed.weight"),
                 last = got.weights[2 + tp].at("decoder.embed.weight");
    EXPECT_EQ(std::memcmp(first.const_data_ptr(), last.const_data_ptr(), first.nbytes()), 0);
  }
}

TEST(Canary, ForgottenSumsOfATiedTableAreNoticed) {
  EXPECT_FALSE(on_pipeline({.pp = 2}, training_cases()[0], {.forget_twins = true}).worst.ok);
}

}  // namespace
}  // namespace hanok

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  at::set_num_threads(1);
  return RUN_ALL_TESTS();
}
