// The loop of one stage.
#pragma once

#include <functional>
#include <memory>

#include "trainer/checkpoint.h"
#include "trainer/evaluate.h"
#include "trainer/metrics.h"
#include "trainer/prediction.h"
#include "trainer/report.h"
#include "trainer/step.h"
#include "trainer/step_scalars.h"

namespace hanok {

enum class StageEnd { kFinished, kEarlyStop, kStopRequested };

/// A step that the device was given: what is told of it when it is over.
struct StepUnderWay {
  int64_t number = 0;
  double lr = 0, data_wait_s = 0;
  Work work;
  LateScalars scalars;
  std::shared_ptr<PassTimes> passes = {};              // null: not timed
  bool fits_pipeline = false, draws_pipeline = false;  // what passes are wanted for
};

/// Everything that one stage works with. Built by run_stages, used by the loop.
struct Trainer {
  const RunConfig& config;
  const RunFolder& folder;
  Learner learner;
  Loader& loader;
  Checkpointer& checkpoint;
  Metrics& metrics;
  Report& report;
  const SampleEncoder& encoder;
  const Dataset* held_out = nullptr;  // null: no evaluation
  EvalOptions evaluation;
  std::function<bool()> stop_requested;
  bool settles_late = false;  // what a step did is told when the next one is under way
  TrainState state;
  bool stop = false;           // some rank was asked to stop
  int64_t saved_step = -1;     // the step whose state is on disk, -1 if it has changed since
  double last_loss = 0;        // of the newest step of this process
  int64_t num_not_finite = 0;  // held-out samples of this process's newest evaluation
  StageMeasures measures = {};
  int64_t steps_begun = 0;  // by this process
  std::optional<StepUnderWay> under_way = {};
  Moment step_began;        // when the step before was over, or else where the one under way began
  double save_stall_s = 0;  // that saving kept the loop; reported with the step after it
};

/// Runs until the stage's steps are done, early stopping ends it, or some rank was asked to stop (all ranks agree on
/// the step). The state it ends in is saved and committed before it returns; nothing is done for a stage that had ended
/// when it was saved.
/// errors: kNumeric when more than optimizer.max_bad_steps steps in a row are not finite (the last checkpoint stays);
///         kIo if the state it ends in cannot be saved; kConfig if eval.metric cannot be measured on the held-out set
StageEnd train_loop(Trainer& t);

}  // namespace hanok
