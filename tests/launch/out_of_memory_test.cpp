// The error of a GPU that is too small: what held its memory by kind, and settings that would fit.
#include "launch/out_of_memory.h"

#include <gtest/gtest.h>

#include "launch/estimate.h"
#include "tests/launch/planned_run.h"

namespace hanok {
namespace {

constexpr double kGiB = 1 << 30;

RefusedAllocation full_gpu() {
  return {.wanted = 2 * kGiB,
          .present = 140 * kGiB,
          .free = 1 * kGiB,
          .allowed = 140 * kGiB,
          .allocated = 130 * kGiB,
          .reserved = 134 * kGiB};
}

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
}

TEST(OutOfMemory, TheTextSaysWhatHeldTheMemoryByKind) {
  const std::string text =
      out_of_memory_text(full_gpu(),
                         {{"weights", 16 * kGiB}, {"gradients", 32 * kGiB}, {"optimizer states", 64 * kGiB}},
                         "rank 3, cuda:3, stage all",
                         {"--set stages.all.recompute=full", "--set parallel.tp=2"});
  EXPECT_EQ(text.find("GPU memory: got no room for another 2.00 GiB, expected it within the 140.00 GiB"), 0u) << text;
  expect_part(
      text, "weights 16.00 GiB, gradients 32.00 GiB, optimizer states 64.00 GiB, activations and workspace 18.00 GiB");
  expect_part(text, "in pieces too small 4.00 GiB");
  expect_part(text, "CUDA, NCCL and other processes 5.00 GiB");
  expect_part(text, "; rank 3, cuda:3, stage all; ");
  expect_part(text, "--set stages.all.recompute=full | --set parallel.tp=2");
}

TEST(OutOfMemory, WithoutSettingsTheTextSaysWhatElseHelps) {
  const std::string text = out_of_memory_text(full_gpu(), {}, "rank 0", {});
  expect_part(text, "held: tensors 130.00 GiB, ");
  expect_part(text, "take more GPUs, a smaller model or shorter rows");
}

TEST(OutOfMemory, ThreeSettingsAreProposedAndEachTakesLess) {
  const RunConfig config = run_of("qwen3vl_8b", 16);
  const std::vector<std::string> settings =
      settings_that_fit(config, config.stages[0], full_gpu(), "NVIDIA H200", /*world_size=*/4);
  ASSERT_EQ(settings.size(), 3u);
  for (const std::string& setting : settings) EXPECT_EQ(setting.find("--set "), 0u) << setting;
}

TEST(OutOfMemory, AnUnknownGpuIsPlannedLikeTheOneNearestInMemory) {
  const RunConfig config = run_of("qwen3vl_8b", 16);
  EXPECT_FALSE(settings_that_fit(config, config.stages[0], full_gpu(), "Some GPU", 4).empty());
}

TEST(OutOfMemory, WhatThePlanThoughtToFitIsNotProposedAgain) {
  RunConfig config = run_of("qwen3vl_8b", 1);
  RefusedAllocation refused = full_gpu();
  refused.present = refused.allowed = 1000 * kGiB;  // by the plan there is room for everything
  for (const std::string& setting : settings_that_fit(config, config.stages[0], refused, "NVIDIA H200", 4))
    EXPECT_EQ(setting.find("--set "), 0u) << setting;
  EXPECT_FALSE(settings_that_fit(config, config.stages[0], refused, "NVIDIA H200", 4).empty());
}

}  // namespace
}  // namespace hanok
