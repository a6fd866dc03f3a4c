// The loop of one stage.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "trainer/checkpoint.h"
#include "trainer/data.h"
#include "trainer/evaluate.h"
#include "trainer/metrics.h"
#include "trainer/objective.h"
#include "trainer/state.h"

namespace hanok {

enum class StageEnd { kFinished, kEarlyStop, kStopRequested };

/// Everything that one stage works with. Built by run_stages, used by the loop.
struct Trainer {
  const RunConfig& config;
  const StageConfig& stage;
  const Groups& groups;
  Vlm& model;
  GradSync& grads;
  AdamW& optimizer;
  Loader& loader;
  Objective& objective;
  Checkpointer& checkpoint;
  Metrics& metrics;
  const SampleEncoder& encoder;
  const Dataset* held_out = nullptr;  // null: no evaluation
  std::function<bool()> stop_requested;
  TrainState state;
};

/// Runs until the stage's steps are done, early stopping ends it, or some rank was asked to stop (all ranks agree on
/// the step). The last checkpoint is saved and committed before it returns. errors: kNumeric after
/// optimizer.max_bad_steps non-finite steps in a row; the last checkpoint stays
StageEnd train_loop(Trainer& t);

struct RunOptions {
  std::string resume = "auto";  // auto, never, or the path of a checkpoint
  std::function<bool()> stop_requested = [] { return false; };
};
struct RunResult {
  StageEnd end = StageEnd::kFinished;
  std::string last_checkpoint, model_folder;
};
/// All stages in order, each on its own layout and from the last one's weights; resumes in the middle of any. Exports
/// at the end.
RunResult run_stages(const RunConfig& config, World& world, at::Device device, const RunOptions& options);

}  // namespace hanok
