#include "trainer/train_loop.h"

#include <cmath>

#include "base/clock.h"
#include "base/log.h"
#include "dataio/file_io.h"
#include "trainer/pipeline_times.h"
#include "trainer/profile.h"
#include "trainer/progress.h"
#include "trainer/schedule.h"
#include "trainer/step_report.h"
#include "trainer/weights.h"

namespace hanok {
namespace {

const Groups& groups_of(const Trainer& t) {
  return t.learner.model.groups();
}

double tokens_per_step(const StageConfig& stage) {
  return static_cast<double>(stage.seq_len * stage.rows_per_step);
}

bool due(int64_t step, int64_t every) {
  return every > 0 && step > 0 && step % every == 0;
}

bool evaluation_due(const Trainer& t) {
  const TrainState& s = t.state;
  if (!t.held_out || s.step == 0 || s.evaluated_step >= s.step) return false;
  return s.step >= s.num_steps || due(s.step, t.config.eval.every);
}

bool save_due(const Trainer& t) {
  return t.saved_step < t.state.step && due(t.state.step, t.config.save.every);
}

bool stopped_early(const Trainer& t) {
  return t.config.eval.patience > 0 && t.state.evals_without_gain >= t.config.eval.patience;
}

bool is_over(const Trainer& t) {
  return t.state.step >= t.state.num_steps || stopped_early(t);
}

/// What decides the best checkpoint.
double judged(const Trainer& t, const EvalResult& result) {
  const bool by_accuracy = t.config.eval.metric == "accuracy";
  HANOK_REQUIRE(by_accuracy ? result.num_answered > 0 : result.num_labels > 0, kConfig)
      << "eval.metric: got " << t.config.eval.metric << ", expected a measure that eval.set = " << t.config.eval.set
      << " allows; it has " << result.num_labels << " label tokens and " << result.num_answered << " answered choices";
  return by_accuracy ? result.accuracy : result.loss;
}

bool is_better(const Trainer& t, double value) {
  const double best = t.state.best_metric;
  if (std::isnan(value) || std::isnan(best)) return !std::isnan(value);
  return t.config.eval.metric == "accuracy" ? value > best : value < best;
}

void publish_evaluation(Trainer& t, const EvalResult& result) {
  if (groups_of(t).rank != 0) return;
  const std::string json = to_json(result), &stage = t.learner.stage.name;
  print_line(concat(stage, " ", t.state.step, "/", t.state.num_steps, "  held out: ", short_text(result)), Tone::kGood);
  t.metrics.record_evaluation(stage, t.state.step, json);
  t.report.show_examples(stage, t.state.step, result, *t.held_out, t.encoder);
  t.report.write(t.metrics.history());
  try {
    write_file_atomically(t.folder.file("evaluation.json"), json + "\n");
  } catch (const Error& error) {  // a summary is not worth a run
    HANOK_LOG(WARNING) << error.what();
  }
}

/// True if this is the best so far and worth keeping. One that a stop cut short is not done: the resumed run does it.
bool evaluate_held_out(Trainer& t) {
  t.learner.grads.await_values();  // ranks may differ in how much they evaluate
  const EvalResult result = evaluate(t.learner.model, *t.held_out, t.encoder, t.evaluation);
  t.stop = !result.complete;
  if (t.stop) return false;
  TrainState& s = t.state;
  s.evaluated_step = s.step;
  t.saved_step = -1;  // what is on disk does not know of this
  t.num_not_finite = result.num_not_finite;
  const double value = judged(t, result);
  const bool is_best = is_better(t, value);
  if (is_best) {
    s.best_metric = value;
    s.best_step = s.step;
  }
  s.evals_without_gain = is_best ? 0 : s.evals_without_gain + 1;
  publish_evaluation(t, result);
  return is_best && t.config.save.best;
}

void save(Trainer& t, bool is_best) {
  const double began = now_s();
  t.learner.grads.await_values();
  t.checkpoint.save(t.state, t.learner.model, t.learner.optimizer);
  if (is_best) t.checkpoint.mark_best(t.state.step);
  t.saved_step = t.state.step;
  t.save_stall_s += now_s() - began;
  t.report.refresh(t.metrics.history());
}

bool profiles_next_step(const Trainer& t) {
  return t.state.step + 1 == t.config.log.profile_step;
}

/// Where the trace of the coming step goes; empty: none is wanted of it. One rank of each pipeline stage writes one.
std::string trace_of_next_step(const Trainer& t) {
  const Groups& groups = groups_of(t);
  const bool speaks = groups.at.dp == 0 && groups.at.cp == 0 && groups.at.tp == 0;
  if (!speaks || !profiles_next_step(t)) return "";
  const std::string stage = groups.pp->size() > 1 ? concat("_pp", groups.at.pp) : "";
  return t.folder.file(concat("trace_", t.learner.stage.name, "_", t.state.step + 1, stage, ".json"));
}

/// The diagram is that of the step before, which no profiler disturbs; of its own where this process has none before.
bool draws_pipeline_of_next_step(const Trainer& t) {
  const int64_t step = t.state.step + 1, profiled = t.config.log.profile_step;
  return profiled > 0 && (step + 1 == profiled || (step == profiled && t.steps_begun == 0));
}

/// As soon as a step is like all that follow, once in a process.
bool fits_pipeline_after_next_step(const Trainer& t) {
  constexpr int64_t kTimedStep = 2;
  return t.steps_begun + 1 == kTimedStep;
}

void advance(Trainer& t, const StepReport& report, const StepScalars& scalars) {
  TrainState& s = t.state;
  s.tokens += report.work.tokens;
  s.optimizer_steps += scalars.applied;
  s.picture_steps += scalars.applied && scalars.has_pictures;
  const bool is_bad = !scalars.applied && report.work.labels > 0;  // a step without a label has nothing to apply
  s.skipped_steps += is_bad;
  s.skipped_in_a_row = is_bad ? s.skipped_in_a_row + 1 : 0;
}

void refuse_bad_steps(Trainer& t, int64_t step, const StepScalars& scalars) {
  if (t.state.skipped_in_a_row <= t.learner.stage.optimizer.max_bad_steps) return;
  t.checkpoint.finish();
  t.report.set_status("failed: steps in a row were not finite");
  t.report.write(t.metrics.history());
  HANOK_FAIL(kNumeric) << "step " << step << ": got loss " << scalars.loss << " and gradient norm " << scalars.grad_norm
                       << ", expected finite values; " << t.state.skipped_in_a_row
                       << " steps in a row were skipped in stage " << t.learner.stage.name
                       << "; lower optimizer.lr, look at the data, or raise optimizer.max_bad_steps";
}

/// Waits for the step under way, if there is one, and tells of it; then all ranks know of it and of a wish to stop.
void settle(Trainer& t) {
  if (!t.under_way) return;
  const StepUnderWay step = *std::exchange(t.under_way, std::nullopt);
  Learner& learner = t.learner;
  const StepScalars scalars = step.scalars.read();
  t.checkpoint.poll();
  const Memory memory = memory_in_use(learner.model.device());
  const StepReport report = share_report({.stop_requested = t.stop_requested && t.stop_requested(),
                                          .work = step.work,
                                          .step_s = step.scalars.end().seconds_since(t.step_began),
                                          .data_wait_s = step.data_wait_s,
                                          .memory_gib = memory.now_gib,
                                          .memory_peak_gib = memory.peak_gib},
                                         groups_of(t));
  t.step_began = step.scalars.end();
  advance(t, report, scalars);
  t.measures.step_s.push_back(report.step_s);
  t.measures.work += report.work;
  t.last_loss = scalars.loss;
  const double flops = model_flops(t.config.model, learner.model.whole(), report.work).total();
  t.metrics.record({.stage = learner.stage.name,
                    .step = step.number,
                    .num_steps = t.state.num_steps,
                    .tokens = report.work.tokens,
                    .label_tokens = report.work.labels,
                    .loss = scalars.loss,
                    .grad_norm = scalars.grad_norm,
                    .lr = step.lr,
                    .step_s = report.step_s,
                    .data_wait_s = report.data_wait_s,
                    .checkpoint_stall_s = t.save_stall_s,
                    .tokens_per_s = report.work.tokens / report.step_s,
                    .model_flops_per_s = flops / report.step_s,
                    .memory_gib = report.memory_gib,
                    .memory_peak_gib = report.memory_peak_gib,
                    .fill = report.work.tokens / tokens_per_step(learner.stage),
                    .experts = scalars.experts,
                    .applied = scalars.applied});
  t.save_stall_s = 0;
  if (step.fits_pipeline) fit_pipeline(*step.passes, learner.model);
  if (step.draws_pipeline)
    write_pipeline_diagram(t.folder.file(concat("pipeline_", learner.stage.name, "_", step.number, ".json")),
                           *step.passes,
                           step.scalars.end(),
                           learner.model);
  if (save_follows(t.config.save, t.held_out != nullptr, t.state.step, t.state.num_steps))
    t.checkpoint.expect_save(learner.model, learner.optimizer);
  t.stop = t.stop || report.stop_requested;
  refuse_bad_steps(t, step.number, scalars);
}

/// Gives the device one step of all ranks, then settles the one before: on a GPU, which has work meanwhile.
void train_step(Trainer& t) {
  Learner& learner = t.learner;
  if (!t.under_way) t.step_began = Moment::now(learner.model.device());
  std::vector<Batch> batches = t.loader.next_step();
  learner.objective.prepare(learner.model, batches);
  const double lr = lr_at(learner.stage.optimizer, t.state.step, t.state.num_steps, tokens_per_step(learner.stage));
  const bool is_pipeline = groups_of(t).pp->size() > 1;
  const bool fits = is_pipeline && fits_pipeline_after_next_step(t);
  const bool draws = is_pipeline && draws_pipeline_of_next_step(t);
  const std::string trace = trace_of_next_step(t);
  const bool is_profiled = profiles_next_step(t);
  std::shared_ptr<PassTimes> passes;
  const LateScalars scalars = [&] {
    const StepProfile profile(trace);
    if (fits || draws) passes = std::make_shared<PassTimes>(learner.model.device());
    LateScalars late(run_step(learner, batches, lr, passes.get()), learner.model.config().decoder);
    if (is_profiled) late.read();  // a trace ends with its step
    return late;
  }();
  ++t.steps_begun;
  ++t.state.step;
  t.state.cursor = t.loader.cursor();
  settle(t);
  t.under_way = StepUnderWay{.number = t.state.step,
                             .lr = lr,
                             .data_wait_s = t.loader.waited_s(),
                             .work = work_of(batches),
                             .scalars = scalars,
                             .passes = passes,
                             .fits_pipeline = fits,
                             .draws_pipeline = draws};
  if (!t.settles_late) settle(t);
}

/// A training that has come to nothing is no success: weights that are no numbers, held-out samples that they give none
/// for, or last steps of which none could be applied. What was saved before stays.
void refuse_diverged(Trainer& t) {
  Tensor broken = at::zeros({}, at::kLong);
  for (const Param& param : t.learner.model.params()) {
    if (param.trainable && !has_finite_values(param.value)) broken += 1;
  }
  groups_of(t).control->all_reduce(broken, Reduce::kMax);  // ranks may hold the same ones
  const TrainState& s = t.state;
  constexpr int64_t kChance = 2;  // so many last steps may be skipped in a good run
  std::string found;
  if (broken.item<int64_t>() > 0)
    found = concat(broken.item<int64_t>(), " weights of a rank that are not finite");
  else if (s.evaluated_step == s.step && t.num_not_finite > 0)
    found = concat(t.num_not_finite, " held-out samples without finite numbers");
  else if (s.skipped_in_a_row > std::min(kChance, s.step - 1))
    found = concat("its last ", s.skipped_in_a_row, " steps skipped as not finite");
  if (found.empty()) return;
  t.checkpoint.finish();
  t.report.set_status("failed: the training diverged");
  t.report.write(t.metrics.history());
  HANOK_FAIL(kNumeric) << "stage " << t.learner.stage.name << ": got " << found
                       << " at its end, expected numbers; lower optimizer.lr, look at the data and at what the model "
                          "starts from, and start again from an earlier checkpoint in "
                       << t.folder.path();
}

/// The state a stage ends in must be on disk where that is wanted: the next stage, or the next start, begins there.
void save_last(Trainer& t) {
  const bool wanted = t.config.save.at_end || t.stop;
  if (wanted && t.saved_step != t.state.step) save(t, false);
  t.report.write(t.metrics.history());
  t.checkpoint.finish();
  if (t.saved_step != t.state.step) return;  // an earlier save that failed has said so
  HANOK_REQUIRE(!t.checkpoint.failed(), kIo)
      << "checkpoint: got an error while saving step " << t.state.step << " of stage " << t.learner.stage.name
      << ", expected a saved state at the end; " << t.folder.path() << "; see the lines above, then start again";
}

}  // namespace

StageEnd train_loop(Trainer& t) {
  while (!t.stop) {
    if (evaluation_due(t) || save_due(t) || is_over(t)) settle(t);
    if (t.stop) break;
    const bool is_best = evaluation_due(t) && evaluate_held_out(t);
    if (is_best || save_due(t)) save(t, is_best);
    if (is_over(t) || t.stop) break;  // stopped in an evaluation: a step now would leave it undone for good
    train_step(t);
  }
  settle(t);
  t.learner.grads.await_values();  // others than forwards may read the weights from here on
  if (!t.stop) refuse_diverged(t);
  save_last(t);
  if (t.stop && (!is_over(t) || evaluation_due(t))) return StageEnd::kStopRequested;
  return stopped_early(t) ? StageEnd::kEarlyStop : StageEnd::kFinished;
}

}  // namespace hanok
