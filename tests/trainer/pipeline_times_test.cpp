// What a pipeline took: its lists follow it, and its diagram shows all of it.
#include "trainer/pipeline_times.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/equivalence/material.h"
#include "trainer/freeze.h"
#include "trainer/run_stages.h"

namespace hanok {
namespace {

using nlohmann::json;

/// One rank of a pipeline of two.
struct Bench {
  Bench(World& world, const char* schedule, bool tied)
      : groups(make_groups(world, Mesh({.pp = 2}), false)),
        model(small_model(tied), groups, at::kFloat, at::kCPU, layout_of(schedule)) {
    initialise(model, 11);
    freeze(model, stage);
    grads = std::make_unique<GradSync>(model.params(), groups, at::kFloat);
    optimizer = std::make_unique<AdamW>(stage.optimizer, model.params(), *grads);
  }
  static ParallelConfig layout_of(const char* schedule) {
    ParallelConfig layout;
    layout.pp = 2;
    layout.schedule = schedule;
    return layout;
  }
  double step(PassTimes* times = nullptr) {
    Learner learner{stage, model, *grads, *optimizer, *objective};
    return run_step(learner, batches, 1e-3, times).loss.item<double>();
  }

  const Groups groups;
  StageConfig stage;
  Vlm model;
  std::unique_ptr<GradSync> grads;
  std::unique_ptr<AdamW> optimizer;
  const std::unique_ptr<Objective> objective = make_objective("next_token");
  static constexpr int kMicroBatches = 5;
  const std::vector<Batch> batches =
      batches_of(real_samples(), {{{0, 0}}, {{0, 64}}, {{0, 1}, {0, 65}}, {{0, 70}}, {{0, 2}}}, 1, small_batches(1));
};

TEST(PipelineTimes, ListsFollowThemOnlyWhereSumsKeepTheirOrder) {
  for (const char* schedule : {"1f1b", "interleaved", "zb-h1", "zb-v"}) {
    for (const bool tied : {false, true}) {
      std::vector<std::vector<double>> losses(2);
      std::vector<std::vector<PassCosts>> measured(2);
      for (const bool fits : {false, true})
        run_on_threads(2, [&](World& world) {
          Bench bench(world, schedule, tied);
          PassTimes times(at::kCPU);
          std::vector<double> own = {bench.step(&times)};
          if (fits) fit_pipeline(times, bench.model);
          for (int i = 0; i < 3; ++i) own.push_back(bench.step());
          if (fits) measured[world.rank()] = bench.model.pipeline().measured;
          if (world.rank() == 0) losses[fits] = own;
        });
      EXPECT_EQ(losses[0], losses[1]) << schedule << " " << tied;
      const bool wanted = std::string(schedule) == "zb-v" && !tied;
      ASSERT_EQ(measured[0].size(), wanted ? 4u : 0u) << schedule << " " << tied;
      for (size_t piece = 0; piece < measured[0].size(); ++piece) {
        const PassCosts &a = measured[0][piece], &b = measured[1][piece];
        EXPECT_GT(a.forward, 0) << piece;
        EXPECT_GT(a.backward_input, 0) << piece;
        EXPECT_TRUE(a.forward == b.forward && a.backward_input == b.backward_input &&
                    a.backward_weight == b.backward_weight)
            << piece << ": ranks must make the same lists";
      }
    }
  }
}

TEST(PipelineTimes, AStepWithoutALabelChangesNoList) {
  run_on_threads(2, [&](World& world) {
    Bench bench(world, "zb-v", false);
    fit_pipeline(PassTimes(at::kCPU), bench.model);
    EXPECT_TRUE(bench.model.pipeline().measured.empty());
  });
}

TEST(PipelineTimes, TheDiagramShowsEveryPassOfEveryRankWithinItsStep) {
  const std::string path = std::filesystem::temp_directory_path() / "hanok_pipeline_diagram.json";
  run_on_threads(2, [&](World& world) {
    Bench bench(world, "zb-v", false);
    bench.step();
    PassTimes times(at::kCPU);
    bench.step(&times);
    write_pipeline_diagram(path, times, Moment::now(at::kCPU), bench.model);
  });
  std::ifstream file(path);
  const json diagram = json::parse(file);
  std::filesystem::remove(path);
  std::map<int, json> steps;
  std::map<int, std::vector<json>> passes;
  for (const json& event : diagram["traceEvents"]) {
    const int rank = event["tid"];
    if (event["ph"] == "M") continue;
    if (event["name"] == "step")
      steps[rank] = event;
    else
      passes[rank].push_back(event);
  }
  ASSERT_EQ(steps.size(), 2u);
  constexpr double kRounding = 1;  // microseconds of a wall clock in f64
  for (const auto& [rank, step] : steps) {
    EXPECT_EQ(passes[rank].size(), 2u * 3 * Bench::kMicroBatches);  // two pieces
    double before = step["ts"];
    EXPECT_GE(before, 0);
    for (const json& pass : passes[rank]) {
      EXPECT_GE(pass["ts"].get<double>(), before - kRounding) << pass;
      EXPECT_GE(pass["dur"].get<double>(), 0) << pass;
      before = pass["ts"].get<double>() + pass["dur"].get<double>();
    }
    EXPECT_LE(before, step["ts"].get<double>() + step["dur"].get<double>() + kRounding);
  }
  // A micro-batch reaches the second piece, on the other rank, when the first one is through with it.
  const auto of_piece = [&](int rank, int piece) {
    for (const json& pass : passes[rank])
      if (pass["cat"] == "forward" && pass["args"]["piece"] == piece && pass["args"]["micro_batch"] == 0) return pass;
    return json();
  };
  const json first = of_piece(0, 0), second = of_piece(1, 1);
  constexpr double kClocks = 100;  // microseconds that ranks may disagree about the time
  EXPECT_GE(second["ts"].get<double>(), first["ts"].get<double>() + first["dur"].get<double>() - kClocks);
}

}  // namespace
}  // namespace hanok
