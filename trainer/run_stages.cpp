#include "trainer/run_stages.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "base/clock.h"
#include "base/log.h"
#include "configs/schema/check.h"
#include "configs/schema/read.h"
#include "dataio/file_io.h"
#include "model/balance.h"
#include "trainer/agree.h"
#include "trainer/configured_dtype.h"
#include "trainer/data.h"
#include "trainer/freeze.h"
#include "trainer/progress.h"
#include "trainer/resume.h"
#include "trainer/schedule.h"
#include "trainer/step_report.h"

namespace hanok {
namespace {

using Datasets = std::map<std::string, std::shared_ptr<const Dataset>>;

/// What all stages of a run share.
struct Run {
  const RunConfig config;  // resolved: model.path read into it
  const RunOptions& options;
  World& world;
  at::Device device;
  RunFolder folder;
  Groups groups;  // of the layout of the current stage
  std::optional<ParallelConfig> layout;
  SampleEncoder encoder;
  Datasets datasets;
  std::unique_ptr<Metrics> metrics;
  std::unique_ptr<Report> report;
  MemoryHeld memory{device};             // by the current stage
  std::vector<std::string> differences;  // of the config since the checkpoint that the run goes on from
  RunResult result;

  bool is_first_rank() const { return world.rank() == 0; }
  bool is_last(int stage) const { return stage + 1 == static_cast<int>(config.stages.size()); }
};

RunConfig resolved(RunConfig config) {
  if (!config.model.path.empty()) read_model_folder(config.model);
  for (const StageConfig& stage : config.stages) check_model(config.model, stage.parallel);
  return config;
}

MeshShape mesh_shape(const ParallelConfig& layout, int world) {
  return {.pp = static_cast<int>(layout.pp),
          .dp = static_cast<int>(data_parallel_size(layout, world)),
          .cp = static_cast<int>(layout.cp),
          .tp = static_cast<int>(layout.tp),
          .ep = static_cast<int>(layout.ep),
          .etp = static_cast<int>(layout.etp)};
}

bool cuts_sequence(const ParallelConfig& layout) {
  return layout.sequence && layout.tp > 1;
}

void enter_layout(Run& run, const ParallelConfig& layout) {
  const int world = run.world.size();
  if (run.layout && mesh_shape(*run.layout, world) == mesh_shape(layout, world) &&
      cuts_sequence(*run.layout) == cuts_sequence(layout))
    return;
  run.groups = make_stage_groups(layout, run.world);
  run.layout = layout;
}

/// A config.yaml that somebody wrote, and put where a run keeps the resolved one.
void require_no_foreign_config(const RunFolder& folder) {
  namespace fs = std::filesystem;
  std::error_code error;
  const std::string file = folder.file("config.yaml");
  if (!fs::exists(fs::symlink_status(file, error))) return;
  bool is_ours = false;
  for (const char* name : {"LOCK", "metrics.jsonl", "checkpoints"}) is_ours |= fs::exists(folder.file(name), error);
  HANOK_REQUIRE(is_ours, kConfig)
      << "out: got a folder with a config.yaml that no run wrote, expected one of a run, or "
      << "none: the resolved config takes that name; " << file << "; set another `out`";
}

/// What the run folder notes of an export.
std::string exported_text(const Run& run, const std::string& checkpoint) {
  const std::string& dtype = run.config.save.export_dtype;
  return checkpoint + "\n" + (dtype == "auto" ? "" : dtype + "\n");
}

/// Whether the model folder holds what this checkpoint, or the best one of its stage, says: then an export is over.
bool is_exported(const Run& run, const CheckpointPath& from) {
  const std::string marker = run.folder.file("exported");
  if (from.directory.empty() || !std::filesystem::exists(marker)) return false;
  const std::string state = read_file(marker);
  return state == exported_text(run, from.directory) ||
         state == exported_text(run, run.folder.best_directory(run.config.stages.at(from.stage).name));
}

/// Found before anything is trained: the export at the end would find it after days.
void require_room_for_export(const RunConfig& config, const RunFolder& folder) {
  if (config.save.export_model) require_export_target(folder.file("model"), export_sources(config));
}

/// Takes the folder and finds the checkpoint to go on from; an empty directory: from the beginning.
CheckpointPath take_up(Run& run) {
  const std::vector<std::string> names = stage_names(run.config);
  run_together(*run.groups.control, [&] {
    if (!run.is_first_rank()) return;
    require_no_foreign_config(run.folder);
    run.folder.lock();
    if (run.options.resume == "never") run.folder.set_aside_from(names, 0, 0);
  });
  const CheckpointPath from = find_checkpoint(run.config, run.folder, run.options.resume, run.groups);
  run_together(*run.groups.control, [&] {
    if (!run.is_first_rank() || is_exported(run, from)) return;
    require_room_for_export(run.config, run.folder);
  });
  if (!from.directory.empty()) {
    const RunConfig was = checkpoint_config(from.directory);
    run.differences = resume_differences(was, run.config);
    require_same_model(run.differences);
    require_same_order_of_stages(was, run.config);
    HANOK_LOG_RANK0(INFO) << "goes on from " << from.directory;
    for (const std::string& line : run.differences)
      HANOK_LOG_RANK0(WARNING) << "the config has changed since that checkpoint: " << line;
    for (const std::string& name : stages_left_out(was, run.config, from.stage))
      HANOK_LOG_RANK0(WARNING) << "stage " << name << " is not run: the checkpoint lies behind its place";
  }
  if (run.is_first_rank() && run.options.resume != "never") {
    for (const std::string& name : run.folder.strange_stages(names))
      HANOK_LOG(WARNING) << "checkpoints of stage " << name << ", which the config has not, stay as they are in "
                         << run.folder.file("checkpoints/" + name);
  }
  run_together(*run.groups.control, [&] {
    if (run.is_first_rank()) write_file_atomically(run.folder.file("config.yaml"), echo(run.config));
  });
  return from;
}

std::string data_key(const StageData& data) {
  std::string key;
  for (const auto& dataset : data.datasets) key += (key.empty() ? "" : "+") + dataset->content_key();
  return key;
}

bool has_labels(const Dataset& dataset) {
  for (int64_t i = 0; i < dataset.size(); ++i)
    if (dataset.num_label_tokens(i) > 0) return true;
  return false;
}

void require_labels(const StageData& data, const StageConfig& stage) {
  const bool any =
      std::any_of(data.datasets.begin(), data.datasets.end(), [](const auto& d) { return has_labels(*d); });
  HANOK_REQUIRE(any, kData) << "stage " << stage.name
                            << ": got datasets without a single label, expected answers to learn "
                            << "from; stages.N.mixture; a prediction set is for the evaluate command";
}

/// The globs of every stage name parameters, and its pipeline has layers: found before hours of packing.
void require_globs(const RunConfig& config) {
  Vlm declared(config.model, make_single_groups(), at::kFloat, at::kMeta);
  for (const StageConfig& stage : config.stages) {
    freeze(declared.params(), stage);
    cut_pieces(config.model, pipeline_shape(stage.parallel).pieces(), stage.parallel.pp_layers);
  }
}

/// Found before the first step: the evaluation at the end of a stage would find it after hours.
void require_measure(const RunConfig& config, const Dataset& held_out) {
  constexpr int64_t kEnough = 64;  // a set of multiple choices shows an answer at once
  const bool by_accuracy = config.eval.metric == "accuracy";
  int64_t num_labelled = 0, num_answered = 0;
  for (int64_t i = 0; i < held_out.size() && num_labelled < kEnough && num_answered == 0; ++i) {
    if (held_out.num_label_tokens(i) == 0) continue;
    ++num_labelled;
    num_answered += by_accuracy && held_out.read(i).answer >= 0;
  }
  HANOK_REQUIRE(by_accuracy ? num_answered > 0 : num_labelled > 0, kConfig)
      << "eval.metric: got " << config.eval.metric << ", expected a measure that eval.set = " << config.eval.set
      << " allows; it has " << (num_labelled == 0 ? "no label" : "no answered multiple choice") << "; "
      << held_out.file() << "; name a set with answers, or leave eval.set empty (the evaluate command needs none)";
}

/// Weights for the start of a stage that has not begun.
void load_start_weights(const RunConfig& config, const CheckpointPath& from, Vlm& model) {
  if (!from.directory.empty()) {
    load_checkpoint_weights(from.directory, model);
  } else if (!config.model.path.empty()) {
    load_weights(model, config.model.path);
  } else {
    initialise(model, static_cast<uint64_t>(config.seed));
  }
}

/// The state to go on with: that of a checkpoint inside this stage, or a fresh one.
TrainState state_for(
    Run& run, int index, const CheckpointPath& from, const StageData& data, Vlm& model, AdamW& optimizer) {
  const StageConfig& stage = run.config.stages[index];
  const bool resumes = !from.directory.empty() && from.stage == index;
  TrainState state{.stage = index};
  if (resumes) {
    state = load_checkpoint(from.directory, model, optimizer);
    state.stage = index;  // by name: another run may have more stages, or fewer
    if (state.step < data.num_steps) require_same_stage(run.differences, index, state, data_key(data));
    if (state.num_steps != data.num_steps) {
      HANOK_LOG_RANK0(WARNING) << "stage " << stage.name << ": was " << state.num_steps << " steps long, is "
                               << data.num_steps << " now; the rate follows the new length";
    }
  }
  HANOK_REQUIRE(data.num_steps > 0, kConfig)
      << "stage " << stage.name << ": got a length of 0 steps, expected at least one; "
      << "stages." << index << ".steps, tokens or epochs";
  state.num_steps = data.num_steps;
  state.data_key = data_key(data);
  return state;
}

/// Whether the checkpoint that a stage goes on from is one of this run folder: another run's is not there next time.
bool is_saved_here(const Run& run, const StageConfig& stage, const CheckpointPath& from, int index) {
  if (from.directory.empty() || from.stage != index) return false;
  std::error_code error;
  return std::filesystem::equivalent(from.directory, run.folder.checkpoint(stage.name, from.step), error);
}

/// The mark of the best checkpoint as the state says it. It may be behind (killed between commit and mark), or be of a
/// course that was left.
void restore_best_mark(Run& run, const StageConfig& stage, const TrainState& state) {
  run_together(*run.groups.control, [&] {
    if (!run.is_first_rank()) return;
    const bool is_kept = run.config.save.best && state.best_step >= 0 &&
                         std::filesystem::exists(run.folder.checkpoint(stage.name, state.best_step) + "/manifest.json");
    const int64_t step = is_kept ? state.best_step : -1;
    const std::string marked = run.folder.best_directory(stage.name);
    if (marked != (is_kept ? run.folder.checkpoint(stage.name, step) : "")) run.folder.set_best(stage.name, step);
  });
}

int64_t num_values(const ParamTable& params, bool trainable_only) {
  int64_t total = 0;
  for (const Param& param : params) {
    if (trainable_only && !param.trainable) continue;
    int64_t n = 1;
    for (const int64_t size : param.spec.shape) n *= size;
    total += n;
  }
  return total;
}

void log_start(const Run& run, const Trainer& t) {
  const ParamTable& params = t.learner.model.whole();
  const StageConfig& stage = t.learner.stage;
  const int64_t tokens = stage.seq_len * stage.rows_per_step;
  HANOK_LOG_RANK0(INFO) << "stage " << stage.name << " (" << t.state.stage + 1 << " of " << run.config.stages.size()
                        << "): " << describe(run.groups.mesh.shape()) << ", "
                        << short_number(double(num_values(params, false))) << " parameters, "
                        << short_number(double(num_values(params, true))) << " train, "
                        << configured_name(t.learner.model.dtype()) << " on " << run.device.str() << ", "
                        << std::max<int64_t>(t.state.num_steps - t.state.step, 0) << " of " << t.state.num_steps
                        << " steps to go, " << short_number(double(tokens)) << " tokens each; config "
                        << config_hash(run.config);
}

void warn_of_endless_warmup(const Trainer& t) {
  const StageConfig& stage = t.learner.stage;
  const int64_t warmup =
      warmup_steps(stage.optimizer, t.state.num_steps, static_cast<double>(stage.seq_len * stage.rows_per_step));
  if (warmup < t.state.num_steps || t.state.num_steps < 2) return;
  HANOK_LOG_RANK0(WARNING) << "stage " << stage.name << ": got a warm-up of " << warmup << " steps in a stage of "
                           << t.state.num_steps
                           << ", expected fewer; the rate rises to the end; set optimizer.warmup_steps or warmup_share";
}

void warn_of_missing_profile(const Trainer& t) {
  const int64_t wanted = t.config.log.profile_step;
  if (wanted <= t.state.num_steps) return;
  HANOK_LOG_RANK0(WARNING) << "log.profile_step: got " << wanted << ", expected one of the " << t.state.num_steps
                           << " steps of stage " << t.learner.stage.name
                           << "; no trace of this stage is written; set an earlier one";
}

/// By content: the same file may have two names.
void warn_of_training_on_held_out(const Run& run) {
  if (run.config.eval.set.empty()) return;
  const std::string held_out = run.datasets.at(run.config.eval.set)->content_key();
  for (const StageConfig& stage : run.config.stages)
    for (const std::string& name : mixture_of(run.config, stage)) {
      if (run.datasets.at(name)->content_key() != held_out) continue;
      HANOK_LOG_RANK0(WARNING) << "stage " << stage.name << ": got the samples of eval.set = " << run.config.eval.set
                               << " in its mixture (" << name << "), expected others to train on; its accuracy and "
                               << "loss will tell nothing of new samples; hold other rows out";
    }
}

const char* text_of(StageEnd end) {
  switch (end) {
    case StageEnd::kFinished: return "finished";
    case StageEnd::kEarlyStop: return "ended early, without gain on held-out data";
    case StageEnd::kStopRequested: return "stopped on request";
  }
  return "";
}

void log_end(const Run& run, const Trainer& t, double seconds) {
  std::string text = concat("stage ",
                            t.learner.stage.name,
                            " ",
                            text_of(run.result.end),
                            " at step ",
                            t.state.step,
                            t.state.step > t.state.num_steps ? concat(" (it is ", t.state.num_steps, " steps long now)")
                                                             : concat(" of ", t.state.num_steps),
                            " after ",
                            duration_text(seconds),
                            ": ",
                            short_number(t.state.tokens),
                            " tokens");
  if (t.last_loss > 0) text += printed(", loss %.4f", t.last_loss);
  if (t.state.best_step >= 0)
    text +=
        concat(", best ", t.config.eval.metric, printed(" %.4f", t.state.best_metric), " at step ", t.state.best_step);
  if (t.state.skipped_steps > 0) text += concat(", ", t.state.skipped_steps, " steps skipped as non-finite");
  if (!run.result.last_checkpoint.empty()) text += "; " + run.result.last_checkpoint;
  HANOK_LOG_RANK0(INFO) << text;
}

/// What was measured beside what was planned.
void compare_end(Run& run, const Trainer& t) {
  if (!run.options.predict) return;
  const StageMeasures& measures = t.measures;
  const double peak_gib = memory_in_use(run.device).peak_gib;
  std::optional<Prediction> planned;
  if (!measures.step_s.empty())
    planned = run.options.predict(
        run.config.model, t.learner.stage, measures.work / static_cast<double>(measures.step_s.size()));
  std::optional<StageComparison> found = compare_with_plan(measures, planned, peak_gib, run.groups);
  if (!found) return;
  found->stage = t.learner.stage.name;
  found->step = t.state.step;
  const double flops = model_flops(run.config.model, t.learner.model.whole(), measures.work).total();
  found->model_flops_per_s = flops / static_cast<double>(measures.step_s.size()) / found->step_s;
  run.metrics->record_comparison(*found);
  HANOK_LOG_RANK0(INFO) << text_of(*found);
}

/// Writes the model folder unless it holds this very state. `model` holds that of the last checkpoint.
void export_handed_on(Run& run, const CheckpointPath& from, Vlm& model) {
  const std::string folder = run.folder.file("model"), marker = run.folder.file("exported");
  const std::string state = exported_text(run, from.directory);
  run.result.model_folder = folder;
  std::string is_done;
  if (run.is_first_rank() && std::filesystem::exists(marker) && std::filesystem::exists(folder) &&
      read_file(marker) == state)
    is_done = "yes";
  if (!broadcast_text(is_done, 0, *run.groups.control).empty()) return;
  if (from.directory != run.result.last_checkpoint) {
    HANOK_LOG_RANK0(INFO) << "model folder: from the best checkpoint by eval.metric = " << run.config.eval.metric
                          << " (save.export), " << from.directory;
    load_checkpoint_weights(from.directory, model);
  }
  export_model(model, folder, export_options(run.config));
  run_together(*run.groups.control, [&] {
    if (run.is_first_rank()) write_file_atomically(marker, state);
  });
}

/// What rank 0 found: GPUs of other ranks may be of another kind.
void agree_on(std::vector<double>& values, Comm& control) {
  Tensor sent = at::tensor(values, at::kDouble);
  control.broadcast(sent, 0);
  values.assign(sent.const_data_ptr<double>(), sent.const_data_ptr<double>() + values.size());
}

/// Deals the layers to the pieces of a pipeline by what the first rows cost. The same on every rank, and after every
/// start on the same kind of GPU: it reads the stage's first step. Collective over groups.control.
void balance_by_first_rows(const Run& run, const StageData& data, StageConfig& stage) {
  ParallelConfig& layout = stage.parallel;
  if (layout.pp == 1) return;
  const ModelConfig& model = run.config.model;
  const bool is_given = !layout.pp_layers.empty();
  const Work work = work_of_first_rows(data);
  std::optional<SublayerCosts> costs;
  if (run.options.time_sublayers) costs = run.options.time_sublayers(model, stage, work);
  const char* unit = costs ? "time" : "FLOPs";
  if (!costs) costs = sublayer_flops(model, work, stage);
  balance_pipeline(model, *costs, layout);
  agree_on(layout.pp_layers, *run.groups.control);
  agree_on(layout.piece_costs, *run.groups.control);
  if (is_given) return;
  HANOK_LOG_RANK0(INFO) << "pipeline: decoder layers of its pieces " << c10::ArrayRef<double>(layout.pp_layers)
                        << ", balanced by " << unit << " for rows of which "
                        << short_number(100 * picture_share(model, work))
                        << " % of the tokens are of pictures (parallel.pp_layers)";
}

/// -> where the next stage begins
CheckpointPath run_stage(Run& run, int index, const CheckpointPath& from) {
  const RunConfig& config = run.config;
  StageConfig stage = config.stages[index];
  const double began = now_s();
  enter_layout(run, stage.parallel);
  const StageData data = make_stage_data(config, stage, run.datasets, run.encoder.vision, run.groups);
  require_labels(data, stage);
  balance_by_first_rows(run, data, stage);

  require_room_for_weights(config.model, run.groups, model_dtype(config.model, run.device), run.device, stage.parallel);
  Vlm model(config.model, run.groups, model_dtype(config.model, run.device), run.device, stage.parallel);
  Execution execution{.recompute = recompute_of(stage),
                      .attention = attention_kernel(stage.attention),
                      .context = context_way(stage.parallel.context)};
  freeze(model, stage);
  if (from.directory.empty() || from.stage != index) load_start_weights(config, from, model);
  run.memory.note("weights");
  GradSync grads(model.params(), run.groups, gradient_options(stage));
  run.memory.note("gradients");
  execution.before_use = [&grads](const std::vector<Tensor>& weights) { grads.await_values(weights); };
  model.set_execution(execution);
  AdamW optimizer(stage.optimizer, model.params(), grads);
  run.memory.note("optimizer states");
  const TrainState state = state_for(run, index, from, data, model, optimizer);
  const std::unique_ptr<Objective> objective = make_objective(stage.objective);
  InputCopies copies(run.device);
  Loader loader(
      data.datasets, data.sampler, data.options, {run.groups.dp->rank(), run.groups.dp->size()}, state.cursor);
  Checkpointer checkpoint(config, run.folder, run.groups);
  if (!run.metrics)
    run.metrics = std::make_unique<Metrics>(
        config.out, ResumePoint{stage.name, state.step, state.evaluated_step}, run.is_first_rank(), config.log.every);

  Trainer t{.config = config,
            .folder = run.folder,
            .learner = {stage, model, grads, optimizer, *objective, copies.is_apart() ? &copies : nullptr},
            .loader = loader,
            .checkpoint = checkpoint,
            .metrics = *run.metrics,
            .report = *run.report,
            .encoder = run.encoder,
            .held_out = config.eval.set.empty() ? nullptr : run.datasets.at(config.eval.set).get(),
            .evaluation = evaluation_options(config, stage, run.encoder, run.groups),
            .stop_requested = run.options.stop_requested,
            .settles_late = run.device.is_cuda() || run.options.settles_late,
            .state = state,
            .saved_step = is_saved_here(run, stage, from, index) ? state.step : -1};
  t.evaluation.stop_requested = run.options.stop_requested;
  restore_best_mark(run, stage, state);
  log_start(run, t);
  warn_of_endless_warmup(t);
  warn_of_missing_profile(t);
  run_together(*run.groups.control, [&] {
    if (run.is_first_rank() && t.state.step < t.state.num_steps) require_room_for_export(config, run.folder);
  });
  run.result.end = train_loop(t);
  if (t.saved_step == t.state.step) run.result.last_checkpoint = run.folder.checkpoint(stage.name, t.state.step);
  log_end(run, t, now_s() - began);
  compare_end(run, t);
  if (run.result.end == StageEnd::kStopRequested) return from;
  const CheckpointPath last{.stage = index, .step = t.state.step, .directory = run.result.last_checkpoint};
  const CheckpointPath handed = handed_on(config, run.folder, last, run.groups);
  if (run.is_last(index) && config.save.export_model) export_handed_on(run, handed, model);
  return handed;
}

/// The same; a GPU that is too small for it is said to be so while it is known what filled it.
CheckpointPath run_stage_in_memory(Run& run, int index, const CheckpointPath& from) {
  run.memory = MemoryHeld(run.device);
  try {
    return run_stage(run, index, from);
  } catch (const c10::OutOfMemoryError&) {
    if (!run.options.explain_refusal || run.device.is_cpu()) throw;
    HANOK_FAIL(kDevice) << run.options.explain_refusal(run.config.stages[index], run.memory.kinds());
  }
}

/// A stop that came too late for the stage before is obeyed before the next one is set up, which may take long.
bool stop_is_agreed(Run& run) {
  Tensor stop = at::full({}, run.options.stop_requested && run.options.stop_requested() ? 1 : 0, at::kLong);
  run.groups.control->all_reduce(stop, Reduce::kMax);
  return stop.item<int64_t>() != 0;
}

}  // namespace

RunResult run_stages(const RunConfig& given, World& world, at::Device device, const RunOptions& options) {
  const RunConfig config = resolved(given);
  require_globs(config);
  Run run{.config = config, .options = options, .world = world, .device = device, .folder = RunFolder(config.out)};
  enter_layout(run, config.stages.front().parallel);
  CheckpointPath from = take_up(run);
  run.encoder = make_encoder(config);
  run.datasets = open_datasets(config, run.encoder, run.groups, run.options.stop_requested);
  if (!config.eval.set.empty()) require_measure(config, *run.datasets.at(config.eval.set));
  warn_of_training_on_held_out(run);
  run.report = std::make_unique<Report>(
      ReportFacts{.config = config, .num_ranks = world.size(), .device = device.str(), .versions = options.versions},
      run.is_first_rank());
  for (int stage = from.directory.empty() ? 0 : from.stage; stage < static_cast<int>(config.stages.size()); ++stage) {
    from = run_stage_in_memory(run, stage, from);
    if (run.result.end == StageEnd::kStopRequested) break;
    if (!run.is_last(stage) && stop_is_agreed(run)) {
      run.result.end = StageEnd::kStopRequested;
      break;
    }
  }
  const bool is_stopped = run.result.end == StageEnd::kStopRequested;
  run.report->set_status(is_stopped ? "stopped on request; the same command goes on" : "finished");
  run.report->write(run.metrics->history());
  return run.result;
}

SublayerCosts sublayer_flops(const ModelConfig& model, const Work& work, const StageConfig& stage) {
  Vlm whole(model, make_single_groups(), at::kFloat, at::kMeta);
  freeze(whole.params(), stage);
  return sublayer_flops(model.decoder.layers, products_of(model, whole.params(), work, recompute_of(stage)));
}

Groups make_stage_groups(const ParallelConfig& layout, World& world) {
  return make_groups(world, Mesh(mesh_shape(layout, world.size())), cuts_sequence(layout));
}

at::ScalarType model_dtype(const ModelConfig& model, at::Device device) {
  if (model.dtype == "float32") return at::kFloat;
  // True from compute capability 8.0 on: earlier GPUs only emulate bfloat16.
  const bool has_bfloat16 = device.is_cuda() && at::detail::getCUDAHooks().supportsBFloat16ConvolutionWithCuDNNv8();
  if (model.dtype == "bfloat16") {
    HANOK_REQUIRE(has_bfloat16 || device.is_cpu(), kDevice)
        << "model.dtype: got bfloat16, expected a dtype that " << device.str()
        << " has; compute capability below 8.0; set model.dtype=float32, or take an Ampere GPU or a newer one";
    return at::kBFloat16;
  }
  return has_bfloat16 ? at::kBFloat16 : at::kFloat;
}

EvalOptions evaluation_options(const RunConfig& config,
                               const StageConfig& stage,
                               const SampleEncoder& encoder,
                               const Groups& groups) {
  return {.seq_len = stage.seq_len,
          .rows_per_forward = config.eval.rows > 0 ? config.eval.rows : stage.rows_per_micro_batch,
          .batch = batch_spec(stage, config.data, encoder, pad_multiple_of(groups), /*pin_memory=*/false),
          .reader_threads = config.data.reader_threads,
          .prefetch_batches = config.data.prefetch_steps * std::max<int64_t>(config.data.reader_threads, 1),
          .shuffles = static_cast<int>(config.eval.shuffles),
          .seed = static_cast<uint64_t>(config.seed)};
}

ExportOptions export_sources(const RunConfig& config) {
  return {.source_folder = config.model.path,
          .tokenizer_folder = config.model.tokenizer.empty() ? config.model.path : config.model.tokenizer};
}

ExportOptions export_options(const RunConfig& config) {
  ExportOptions options = export_sources(config);
  options.chat_template = jinja_of(chat_template_of(config)->name());
  options.vision = vision_prep_of(config);
  const std::string& dtype = config.save.export_dtype;
  if (dtype != "auto") options.dtype = configured_dtype(dtype);
  return options;
}

}  // namespace hanok
