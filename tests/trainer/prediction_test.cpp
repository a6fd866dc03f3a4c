// A stage ends with its plan beside what was measured.
#include "trainer/prediction.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/trainer/tiny_run.h"
#include "trainer/run_stages.h"

namespace hanok {
namespace {

std::vector<nlohmann::json> comparisons_of(const RunConfig& config, const Predict& predict) {
  at::set_num_threads(1);
  run_on_threads(2, [&](World& world) { run_stages(config, world, at::kCPU, {.predict = predict}); });
  std::vector<nlohmann::json> out;
  std::ifstream file(config.out + "/metrics.jsonl");
  for (std::string line; std::getline(file, line);)
    if (const auto value = nlohmann::json::parse(line); value["kind"] == "plan") out.push_back(value);
  return out;
}

TEST(Prediction, StandsBesideWhatAStageTook) {
  const TinyRun tiny("prediction");
  const auto lines =
      comparisons_of(tiny.config(), [](const ModelConfig& model, const StageConfig& stage, const Work& work) {
        EXPECT_GT(model.decoder.layers, 0);
        EXPECT_GT(work.tokens, 0);
        EXPECT_LE(work.tokens, static_cast<double>(stage.seq_len * stage.rows_per_step));
        return std::optional(Prediction{.step_s = 0.25, .peak_gib = {0.5}});
      });
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["stage"], "align");
  EXPECT_EQ(lines[1]["step"], 5);
  EXPECT_EQ(lines[1]["step_s_planned"], 0.25);
  EXPECT_GT(lines[1]["step_s"].get<double>(), 0);
  EXPECT_GT(lines[1]["tokens_per_s"].get<double>(), 0);
  EXPECT_EQ(lines[1]["memory_peak_gib_planned"], nlohmann::json({0.5, 0.5}));
  EXPECT_EQ(lines[1]["memory_peak_gib"].size(), 2u);
}

TEST(Prediction, IsLeftOutWhereTheDeviceIsUnknown) {
  const TinyRun tiny("no_prediction");
  const auto nothing = [](const ModelConfig&, const StageConfig&, const Work&) { return std::optional<Prediction>(); };
  EXPECT_TRUE(comparisons_of(tiny.config(), nothing).empty());
}

TEST(Prediction, TextSaysTheErrorOfBoth) {
  const std::string text =
      text_of({.stage = "s", .step_s = 2, .step_s_planned = 1.8, .peak_gib = {10}, .peak_gib_planned = {10.5}});
  EXPECT_NE(text.find("step 2.000 s, planned 1.800 s (-10.0 %)"), std::string::npos) << text;
  EXPECT_NE(text.find("10.00 (planned 10.50, +5.0 %) GiB"), std::string::npos) << text;
}

}  // namespace
}  // namespace hanok
