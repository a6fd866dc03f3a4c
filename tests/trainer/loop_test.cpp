#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tests/support/errors.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/run_stages.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

RunResult run_on(int ranks, const RunConfig& config, const RunOptions& options = {}) {
  at::set_num_threads(ranks);  // one a rank
  RunResult result;
  run_on_threads(ranks, [&](World& world) {
    const RunResult own = run_stages(config, world, at::kCPU, options);
    if (world.rank() == 0) result = own;
  });
  return result;
}

/// Asks for a stop once `steps` steps have been taken by this process.
RunOptions stop_after(int steps, const std::string& resume = "auto") {
  auto left = std::make_shared<std::atomic<int>>(steps);
  return {.resume = resume, .stop_requested = [left] { return --*left <= 0; }};
}

std::vector<json> lines_of(const RunConfig& config) {
  std::vector<json> out;
  std::ifstream file(config.out + "/metrics.jsonl");
  for (std::string line; std::getline(file, line);) out.push_back(json::parse(line));
  return out;
}

/// "align1 align2 ... all5", steps only.
std::string steps_of(const RunConfig& config) {
  std::string out;
  for (const json& line : lines_of(config))
    if (line["kind"] == "step") out += line["stage"].get<std::string>() + std::to_string(line["step"].get<int>()) + " ";
  return out;
}

std::vector<double> losses_of(const RunConfig& config) {
  std::vector<double> out;
  for (const json& line : lines_of(config))
    if (line["kind"] == "step") out.push_back(line["loss"].is_null() ? NAN : line["loss"].get<double>());
  return out;
}

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

constexpr const char* kAllSteps = "align1 align2 align3 all1 all2 all3 all4 all5 ";

TEST(RunStages, RunsEveryStageEvaluatesSavesAndExports) {
  const TinyRun tiny("whole");
  const RunConfig config = tiny.config();
  const RunResult result = run_on(1, config);
  EXPECT_EQ(result.end, StageEnd::kFinished);
  EXPECT_EQ(steps_of(config), kAllSteps);
  EXPECT_TRUE(result.last_checkpoint.ends_with("checkpoints/all/step_00000005"));
  for (const char* name :
       {"config.yaml", "loss.svg", "evaluation.json", "model/model.safetensors", "model/config.json"})
    EXPECT_TRUE(fs::exists(config.out + "/" + name)) << name;
  const json evaluation = json::parse(bytes_of(config.out + "/evaluation.json"));
  EXPECT_EQ(evaluation["num_answered"], 16);
  const std::vector<double> losses = losses_of(config);
  EXPECT_LT(losses.back(), losses.front());
  for (const json& line : lines_of(config)) {
    if (line["kind"] != "step") continue;
    EXPECT_GT(line["model_flops_per_s"], 0);
    EXPECT_GT(line["memory_gib"], 0);
    EXPECT_GT(line["fill"], 0.5);
    EXPECT_LE(line["fill"], 1);
  }
}

TEST(RunStages, WhatIsFinishedIsNotDoneAgain) {
  const TinyRun tiny("twice");
  const RunConfig config = tiny.config();
  run_on(1, config);
  const std::string metrics = bytes_of(config.out + "/metrics.jsonl");
  const auto written = fs::last_write_time(config.out + "/model/model.safetensors");
  const RunResult again = run_on(1, config);
  EXPECT_EQ(again.end, StageEnd::kFinished);
  EXPECT_EQ(again.model_folder, config.out + "/model");
  EXPECT_EQ(bytes_of(config.out + "/metrics.jsonl"), metrics);
  EXPECT_EQ(fs::last_write_time(config.out + "/model/model.safetensors"), written);
}

TEST(RunStages, StoppedAnywhereItEndsInTheSameBits) {
  const TinyRun undisturbed("undisturbed");
  RunConfig config = undisturbed.config();
  config.eval.every = 2;
  run_on(2, config);
  const std::string weights = bytes_of(config.out + "/model/model.safetensors");
  const std::vector<double> losses = losses_of(config);
  const TinyRun tiny("stopped");
  RunConfig stopped = tiny.config();
  stopped.eval.every = 2;
  // The stop is also asked for between forwards of an evaluation: the counts reach all of these places.
  for (const int steps : {1, 2, 3, 2, 4})
    EXPECT_EQ(run_on(2, stopped, stop_after(steps)).end, StageEnd::kStopRequested);
  EXPECT_EQ(run_on(2, stopped).end, StageEnd::kFinished);
  EXPECT_EQ(steps_of(stopped), kAllSteps);
  EXPECT_EQ(losses_of(stopped), losses);
  EXPECT_EQ(bytes_of(stopped.out + "/model/model.safetensors"), weights);
}

// As on GPUs, where the device has its next step before the numbers of this one are read.
TEST(RunStages, StepsThatAreSettledLateTellTheSame) {
  const TinyRun at_once("at_once"), late("late");
  RunConfig config = at_once.config(), other = late.config();
  config.eval.every = other.eval.every = 2;
  run_on(2, config);
  const auto with_lag = [](RunOptions options) {
    options.settles_late = true;
    return options;
  };
  for (const int steps : {1, 2, 3, 2}) run_on(2, other, with_lag(stop_after(steps)));
  EXPECT_EQ(run_on(2, other, with_lag({})).end, StageEnd::kFinished);
  EXPECT_EQ(steps_of(other), kAllSteps);
  EXPECT_EQ(losses_of(other), losses_of(config));
  EXPECT_EQ(bytes_of(other.out + "/model/model.safetensors"), bytes_of(config.out + "/model/model.safetensors"));
}

// The lists of the V are made anew for what passes took, which is never twice the same; what comes of a step is.
TEST(RunStages, APipelineThatFollowsItsTimesEndsInTheSameBits) {
  for (const bool tied : {false, true}) {
    const TinyRun undisturbed("v_undisturbed"), stopped("v_stopped");
    RunConfig config = undisturbed.config(), other = stopped.config();
    for (RunConfig* each : {&config, &other}) {
      each->model.decoder.tied = tied;
      each->stages[1].parallel.pp = 2;
      each->stages[1].parallel.schedule = "zb-v";
      each->stages[1].rows_per_step = 8 * each->stages[1].rows_per_micro_batch;
    }
    run_on(2, config);
    for (const int steps : {6, 7}) run_on(2, other, stop_after(steps));
    EXPECT_EQ(run_on(2, other).end, StageEnd::kFinished);
    EXPECT_EQ(losses_of(other), losses_of(config)) << tied;
    EXPECT_EQ(bytes_of(other.out + "/model/model.safetensors"), bytes_of(config.out + "/model/model.safetensors"))
        << tied;
  }
}

TEST(RunStages, AStageMayHaveALayoutOfItsOwn) {
  const TinyRun one("layout_one"), two("layout_two");
  RunConfig config = one.config(), changing = two.config();
  run_on(1, config);
  changing.stages[0].parallel.tp = 2;
  run_on(2, changing);
  const std::vector<double> a = losses_of(config), b = losses_of(changing);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-4) << i;
}

TEST(RunStages, AStageMayCutExpertsInAnotherWay) {
  const TinyRun tiny("layout_experts");
  RunConfig config = tiny.config();
  config.model.decoder.type = "qwen3_moe";
  config.model.decoder.experts = 4;
  config.model.decoder.experts_per_token = 2;
  config.model.decoder.expert_ffn = 32;
  config.stages[1].parallel.etp = 2;
  const RunResult result = run_on(2, config);
  const json manifest = json::parse(bytes_of(result.last_checkpoint + "/manifest.json"));
  EXPECT_EQ(manifest["state"]["layout"]["etp"], 2);
}

TEST(RunStages, GoesOnUnderAnotherLayout) {
  const TinyRun one("resume_one"), two("resume_two");
  const RunConfig config = one.config(), moved = two.config();
  run_on(1, config);
  EXPECT_EQ(run_on(2, moved, stop_after(9)).end, StageEnd::kStopRequested);
  run_on(1, moved);
  EXPECT_EQ(steps_of(moved), kAllSteps);
  const std::vector<double> a = losses_of(config), b = losses_of(moved);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b.at(i), 1e-4) << i;
}

TEST(RunStages, NeverStartsAnewAndSetsEarlierCheckpointsAside) {
  const TinyRun tiny("never");
  RunConfig config = tiny.config();
  run_on(1, config);
  config.seed = 4;  // refused when going on, fine when starting anew
  const std::string refused = message_of(ErrorKind::kConfig, [&] { run_on(1, config); });
  EXPECT_NE(refused.find("seed: was 3, is 4"), std::string::npos) << refused;
  run_on(1, config, {.resume = "never"});
  EXPECT_EQ(steps_of(config), kAllSteps);
}

TEST(RunStages, AnotherModelIsRefusedAnotherRateIsNot) {
  const TinyRun tiny("refused");
  RunConfig config = tiny.config();
  run_on(1, config, stop_after(1));
  RunConfig other = config;
  other.model.decoder.ffn = 32;
  const std::string message = message_of(ErrorKind::kConfig, [&] { run_on(1, other); });
  EXPECT_NE(message.find("model.decoder.ffn: was 24, is 32"), std::string::npos) << message;
  other = config;
  other.stages[0].seq_len = 256;
  EXPECT_NE(message_of(ErrorKind::kConfig, [&] { run_on(1, other); }).find("seq_len"), std::string::npos);
  other = config;
  other.stages[0].optimizer.lr = 1e-4;
  other.stages[1].seq_len = 256;  // not begun yet
  EXPECT_EQ(run_on(1, other).end, StageEnd::kFinished);
}

TEST(RunStages, OtherDataInTheMiddleOfAStageAreRefused) {
  const TinyRun tiny("data");
  const RunConfig config = tiny.config();
  run_on(1, config, stop_after(1));
  const std::string csv = bytes_of(tiny.file("train.csv"));
  std::ofstream(tiny.file("train.csv")) << csv.substr(0, csv.rfind('\n', csv.size() - 2) + 1);  // a row less
  const std::string message = message_of(ErrorKind::kConfig, [&] { run_on(1, config); });
  EXPECT_NE(message.find("content of the datasets"), std::string::npos) << message;
}

TEST(RunStages, AGlobThatMatchesNothingIsAnError) {
  const TinyRun tiny("glob");
  RunConfig config = tiny.config();
  config.stages[0].trainable = {"conector.**"};
  EXPECT_NE(message_of(ErrorKind::kConfig, [&] { run_on(1, config); }).find("conector.**"), std::string::npos);
}

TEST(RunStages, DataWithoutAnyLabelAreAnError) {
  const TinyRun tiny("unlabelled");
  RunConfig config = tiny.config();
  config.stages[0].mixture = {{"predict", 1.0}};
  EXPECT_NE(message_of(ErrorKind::kData, [&] { run_on(1, config); }).find("label"), std::string::npos);
}

TEST(TrainLoop, StopsEarlyWhenHeldOutDataGainNothing) {
  const TinyRun tiny("early");
  RunConfig config = tiny.config();
  config.stages.erase(config.stages.begin());
  config.stages[0].optimizer.lr = 0;  // nothing can get better after the first evaluation
  config.stages[0].steps = 40;
  config.eval.every = 2;
  config.eval.patience = 2;
  config.save.every = 0;  // the best one is saved all the same
  EXPECT_EQ(run_on(2, config).end, StageEnd::kEarlyStop);
  EXPECT_EQ(losses_of(config).size(), 6u);
  EXPECT_EQ(run_on(2, config).end, StageEnd::kEarlyStop);  // it had ended when it was saved
  EXPECT_EQ(losses_of(config).size(), 6u);
  EXPECT_EQ(bytes_of(config.out + "/checkpoints/all/best").substr(0, 13), "step_00000002");
  EXPECT_TRUE(fs::exists(config.out + "/checkpoints/all/step_00000002/manifest.json"));
}

std::string exported_from(const RunConfig& config) {
  const std::string text = bytes_of(config.out + "/exported");
  return text.substr(text.find("checkpoints/") + 12);
}

/// A rate that spoils: the best is an earlier checkpoint than the last.
RunConfig spoiling(const TinyRun& tiny) {
  RunConfig config = tiny.config();
  for (StageConfig& stage : config.stages) {
    stage.trainable = {"**"};
    stage.steps = 2;
    stage.optimizer.schedule = "constant";
  }
  config.stages[0].optimizer.lr = 1;
  config.stages[1].optimizer.lr = 0;  // no gain after its first evaluation
  config.eval.every = 1;
  config.save.every = 0;
  return config;
}

TEST(RunStages, TheBestCheckpointIsHandedOnAndExportedUnlessTheLastIsAskedFor) {
  const TinyRun one("best"), two("best_last");
  const RunConfig best = spoiling(one);
  RunConfig last = spoiling(two);
  last.save.export_from = "last";
  run_on(1, best);
  run_on(1, last);
  for (const char* stage : {"align", "all"}) {
    EXPECT_EQ(bytes_of(best.out + "/checkpoints/" + stage + "/best"), "step_00000001\n") << stage;
  }
  EXPECT_EQ("all/" + bytes_of(best.out + "/checkpoints/all/best"), exported_from(best));
  EXPECT_EQ(exported_from(last), "all/step_00000002\n");
  const std::vector<double> a = losses_of(best), b = losses_of(last);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(a[i], b[i]) << "the first stage is the same";
  EXPECT_NE(a[2], b[2]) << "the second one begins elsewhere";
  EXPECT_FALSE(fs::exists(best.out + "/checkpoints/all/step_00000000")) << "a stage's start is derived, not stored";
}

TEST(RunStages, StoppedAnywhereTheSameBestIsHandedOn) {
  const TinyRun one("best_whole"), two("best_stopped");
  const RunConfig whole = spoiling(one), stopped = spoiling(two);
  run_on(2, whole);
  for (int start = 0; start < 30 && run_on(2, stopped, stop_after(3 + start)).end == StageEnd::kStopRequested;
       ++start) {
  }
  EXPECT_EQ(losses_of(stopped), losses_of(whole));
  EXPECT_EQ(exported_from(stopped), exported_from(whole));
  const std::string file = "/model/model.safetensors";
  EXPECT_TRUE(bytes_of(stopped.out + file) == bytes_of(whole.out + file)) << "the exported weights differ";
}

TEST(RunStages, AMarkThatAKillLeftBehindIsRestored) {
  const TinyRun tiny("mark");
  const RunConfig config = spoiling(tiny);
  run_on(1, config);
  const std::string mark = config.out + "/checkpoints/all/best", right = bytes_of(mark);
  for (const bool is_gone : {true, false}) {
    fs::remove(mark);
    if (!is_gone) std::ofstream(mark) << "step_00000002\n";
    run_on(1, config);
    EXPECT_EQ(bytes_of(mark), right);
  }
}

TEST(RunStages, ADamagedBestCheckpointGivesWayToTheLast) {
  const TinyRun tiny("best_damaged");
  const RunConfig config = spoiling(tiny);
  run_on(1, config);
  const std::string name = bytes_of(config.out + "/checkpoints/all/best");
  for (const auto& file : fs::directory_iterator(config.out + "/checkpoints/all/" + name.substr(0, 13)))
    if (file.path().extension() == ".safetensors") fs::resize_file(file.path(), fs::file_size(file.path()) / 2);
  fs::remove(config.out + "/exported");
  run_on(1, config);
  EXPECT_EQ(exported_from(config), "all/step_00000002\n");
}

TEST(TrainLoop, AnEvaluationThatAStopPutOffIsDoneOnce) {
  const TinyRun tiny("put_off");
  RunConfig config = tiny.config();
  config.stages.erase(config.stages.begin());
  config.stages[0].optimizer.lr = 0;
  config.eval.every = 1;
  config.eval.patience = 1;
  const auto evaluations = [&] {
    int count = 0;
    for (const json& line : lines_of(config)) count += line["kind"] == "evaluation";
    return count;
  };
  int asked = 0;  // the first step, the forwards of its evaluation, and then the second step
  RunOptions options;
  options.stop_requested = [&] {
    return ++asked > 1 && steps_of(config).find("all1") != std::string::npos && evaluations() == 1;
  };
  EXPECT_EQ(run_on(1, config, options).end, StageEnd::kStopRequested);
  EXPECT_EQ(steps_of(config), "all1 all2 ");
  EXPECT_EQ(evaluations(), 1);
  for (int start = 0; start < 2; ++start) {
    EXPECT_EQ(run_on(1, config).end, StageEnd::kEarlyStop);
    EXPECT_EQ(evaluations(), 2);
  }
}

TEST(TrainLoop, BadStepsAreSkippedCountedAndLimited) {
  const TinyRun tiny("bad");
  RunConfig config = tiny.config();
  config.stages.erase(config.stages.begin());
  config.stages[0].steps = 30;
  config.stages[0].optimizer.lr = 1e30;  // the second step overflows, and so do all after it
  config.stages[0].optimizer.clip_norm = 0;
  config.stages[0].optimizer.max_bad_steps = 3;
  const std::string message = message_of(ErrorKind::kNumeric, [&] { run_on(2, config); });
  EXPECT_NE(message.find("4 steps in a row"), std::string::npos) << message;
  int skipped = 0;
  for (const json& line : lines_of(config)) skipped += line["kind"] == "step" && line["applied"] == false;
  EXPECT_EQ(skipped, 4);
}

// Fewer bad steps than the limit, at the end: with and without a held-out set that shows it.
TEST(TrainLoop, ADivergedTrainingIsNoSuccess) {
  for (const bool evaluates : {true, false}) {
    const TinyRun tiny("diverged");
    RunConfig config = tiny.config();
    config.stages.erase(config.stages.begin());
    config.stages[0].steps = evaluates ? 2 : 4;
    config.stages[0].optimizer.lr = 1e30;
    config.stages[0].optimizer.clip_norm = 0;
    config.save.export_model = true;
    if (!evaluates) config.eval.set = "";
    const std::string message = message_of(ErrorKind::kNumeric, [&] { run_on(2, config); });
    EXPECT_NE(message.find(evaluates ? "16 held-out samples without finite numbers" : "its last 3 steps skipped"),
              std::string::npos)
        << message;
    EXPECT_FALSE(fs::exists(config.out + "/model"));
  }
}

TEST(TrainLoop, AMeasureThatTheHeldOutSetLacksIsAnError) {
  const TinyRun tiny("measure");
  RunConfig config = tiny.config();
  config.eval.set = "predict";
  config.eval.metric = "accuracy";
  EXPECT_NE(message_of(ErrorKind::kConfig, [&] { run_on(1, config); }).find("eval.metric"), std::string::npos);
}

}  // namespace
}  // namespace hanok
