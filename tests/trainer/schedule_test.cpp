#include "trainer/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "base/error.h"

namespace hanok {
namespace {

OptimizerConfig config_of(const std::string& schedule, int64_t warmup = 0, double min_ratio = 0.1) {
  OptimizerConfig config;
  config.lr = 2;
  config.schedule = schedule;
  config.warmup_steps = warmup;
  config.min_lr_ratio = min_ratio;
  return config;
}

TEST(Schedule, WarmUpIsLinearAndReachesThePeakAtItsLastStep) {
  const OptimizerConfig config = config_of("constant", 4);
  for (int64_t step = 0; step < 4; ++step) EXPECT_DOUBLE_EQ(lr_at(config, step, 10, 1), 2 * (step + 1) / 4.0);
  EXPECT_DOUBLE_EQ(lr_at(config, 9, 10, 1), 2);
}

TEST(Schedule, CosineStartsAtThePeakAndEndsAtTheSmallestRate) {
  const OptimizerConfig config = config_of("cosine", 3);
  EXPECT_DOUBLE_EQ(lr_at(config, 2, 13, 1), 2);
  EXPECT_DOUBLE_EQ(lr_at(config, 7, 13, 1), 2 * (0.1 + 0.9 * 0.5));
  EXPECT_DOUBLE_EQ(lr_at(config, 12, 13, 1), 0.2);
  EXPECT_DOUBLE_EQ(lr_at(config, 4, 13, 1), 2 * (0.1 + 0.45 * (1 + std::cos(std::numbers::pi * 0.2))));
}

TEST(Schedule, LinearFallsEvenly) {
  const OptimizerConfig config = config_of("linear", 0, 0);
  for (int64_t step = 0; step < 5; ++step) EXPECT_DOUBLE_EQ(lr_at(config, step, 5, 1), 2 * (1 - step / 4.0));
}

TEST(Schedule, WsdIsFlatUntilItsLastShare) {
  OptimizerConfig config = config_of("wsd", 2);
  config.decay_share = 0.3;
  for (int64_t step = 1; step <= 6; ++step) EXPECT_DOUBLE_EQ(lr_at(config, step, 10, 1), 2);
  EXPECT_DOUBLE_EQ(lr_at(config, 7, 10, 1), 2 * (1 - 0.9 / 3));
  EXPECT_DOUBLE_EQ(lr_at(config, 9, 10, 1), 0.2);
  config.decay_share = 1;  // never into the warm-up
  EXPECT_DOUBLE_EQ(lr_at(config, 1, 10, 1), 2);
  config.decay_share = 0;
  EXPECT_DOUBLE_EQ(lr_at(config, 9, 10, 1), 2);
}

TEST(Schedule, WarmUpInTokensRoundsUpToSteps) {
  OptimizerConfig config = config_of("constant");
  config.warmup_tokens = 2500;
  EXPECT_DOUBLE_EQ(lr_at(config, 0, 10, 1000), 2 / 3.0);
  EXPECT_DOUBLE_EQ(lr_at(config, 2, 10, 1000), 2);
}

TEST(Schedule, WarmUpBeyondAllStepsIsLongerThanTheStage) {
  OptimizerConfig config;
  config.warmup_tokens = 1e300;
  EXPECT_GT(warmup_steps(config, 10, 1000), 10);
  config.lr = 1;
  EXPECT_DOUBLE_EQ(lr_at(config, 0, 10, 1000), 0.1);
}

TEST(Schedule, WarmUpAsAShareFollowsTheLengthOfTheStage) {
  OptimizerConfig config = config_of("constant");
  config.warmup_share = 0.03;
  EXPECT_EQ(warmup_steps(config, 10, 1), 1);
  EXPECT_EQ(warmup_steps(config, 1000, 1), 30);
  EXPECT_DOUBLE_EQ(lr_at(config, 14, 1000, 1), 1);
  EXPECT_DOUBLE_EQ(lr_at(config, 29, 1000, 1), 2);
}

TEST(Schedule, EdgesKeepARateAboveZero) {
  for (const char* name : {"cosine", "linear", "wsd", "constant"}) {
    EXPECT_DOUBLE_EQ(lr_at(config_of(name), 0, 1, 1), 2) << name;      // one step
    EXPECT_DOUBLE_EQ(lr_at(config_of(name, 5), 4, 5, 1), 2) << name;   // all warm-up
    EXPECT_DOUBLE_EQ(lr_at(config_of(name, 50), 4, 5, 1), 2) << name;  // warm-up longer than the stage
    EXPECT_GE(lr_at(config_of(name), 1, 2, 1), 0.2 - 1e-12) << name;   // two steps
    EXPECT_DOUBLE_EQ(lr_at(config_of(name), 7, 5, 1), lr_at(config_of(name), 4, 5, 1)) << name;  // beyond the end
  }
}

TEST(Schedule, AnUnknownNameIsAnError) {
  EXPECT_THROW(lr_at(config_of("step"), 0, 2, 1), Error);
}

}  // namespace
}  // namespace hanok
