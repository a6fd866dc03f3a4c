// Finding a checkpoint that can be trusted, and loading it into any layout.
#include <ATen/Parallel.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "configs/schema/read.h"
#include "trainer/agree.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_pieces.h"
#include "trainer/checkpoint_state.h"
#include "trainer/host_memory.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;

/// Every rank checks its part of the bytes. -> why it cannot be used, the same on every rank
std::optional<Error> fault_of(const std::string& directory, Comm& control) {
  return failure_of(control, [&] {
    const TensorStore store(directory);
    if (control.rank() == 0) store.check_complete();
    store.verify(control.rank(), control.size(), helping_threads());
  });
}

/// World rank 0's list, on every rank: file systems need not show all of them the same at the same time.
std::vector<std::string> agreed_list(const std::vector<CheckpointPath>& found, Comm& control) {
  std::string text;
  for (const CheckpointPath& path : found) text += path.directory + "\n";
  text = broadcast_text(text, 0, control);
  std::vector<std::string> out;
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1)
    out.push_back(text.substr(begin, end - begin));
  return out;
}

CheckpointPath described(const std::string& directory, const RunConfig& config) {
  const CheckpointState state = state_from_json(TensorStore(directory).state(), directory);
  const auto names = stage_names(config);
  const auto name = std::find(names.begin(), names.end(), state.stage_name);
  HANOK_REQUIRE(name != names.end(), kCheckpoint)
      << "checkpoint: got one of stage " << state.stage_name << ", expected one of the stages " << names << "; "
      << directory << "; use the config that it was saved with, or start from its exported model by model.path";
  return {static_cast<int>(name - names.begin()), state.train.step, directory};
}

struct Search {
  CheckpointPath found;  // empty: none
  bool was_overtaken = false;
};

Search look_for_newest_sound(const RunConfig& config, const RunFolder& folder, Comm& control) {
  const auto candidates = agreed_list(
      control.rank() == 0 ? folder.checkpoints(stage_names(config)) : std::vector<CheckpointPath>{}, control);
  std::optional<Error> last;
  for (const std::string& directory : candidates) {
    CheckpointPath found;
    last = fault_of(directory, control);
    const bool is_sound = !last;
    if (is_sound) last = failure_of(control, [&] { found = described(directory, config); });
    if (!last) return {.found = found};
    if (was_removed(directory, control)) return {.was_overtaken = true};
    if (is_sound) throw *last;
    HANOK_LOG_RANK0(WARNING) << last->what() << "; the one before it is tried";
  }
  HANOK_REQUIRE(!last, kCheckpoint) << "checkpoints: got " << candidates.size()
                                    << " and none that can be used, expected one; " << folder.path()
                                    << "/checkpoints; the last fault was: " << last->what()
                                    << "; give --resume never to start anew";
  return {};
}

/// A run that trains beside this one removes old checkpoints: then there are newer ones.
CheckpointPath newest_sound(const RunConfig& config, const RunFolder& folder, Comm& control) {
  for (int i = 0; i < kReadsBesideATraining; ++i) {
    const Search search = look_for_newest_sound(config, folder, control);
    if (!search.was_overtaken) return search.found;
    HANOK_LOG_RANK0(INFO)
        << "the newest checkpoint was removed while it was read: a run saves there; the next one is read";
  }
  HANOK_FAIL(kCheckpoint) << "checkpoints: got " << kReadsBesideATraining
                          << " that were removed while they were read, expected one that stays; " << folder.path()
                          << "; raise save.keep or save.every of the run that saves there";
}

}  // namespace

bool was_removed(const std::string& directory, Comm& control) {
  std::error_code error;
  const bool is_gone = control.rank() == 0 && !fs::exists(directory + "/manifest.json", error);
  return !broadcast_text(is_gone ? "gone" : "", 0, control).empty();
}

CheckpointPath find_checkpoint(const RunConfig& config,
                               const RunFolder& folder,
                               const std::string& resume,
                               const Groups& groups) {
  Comm& control = *groups.control;
  if (resume == "never") return {};
  if (resume == "auto") return newest_sound(config, folder, control);
  std::error_code error;
  const bool is_run = fs::exists(resume + "/checkpoints", error);
  const char* kind = is_run ? "run" : fs::is_directory(resume, error) ? "checkpoint" : "absent";
  const std::string what = broadcast_text(kind, 0, control);
  HANOK_REQUIRE(what != "absent", kCheckpoint)
      << "checkpoint: got " << resume
      << ", expected auto, never, or the folder of a checkpoint or of a run; there is no "
      << "such folder; correct --resume or --checkpoint";
  if (what == "run") {
    const CheckpointPath found = newest_sound(config, RunFolder(resume), control);
    HANOK_REQUIRE(!found.directory.empty(), kCheckpoint)
        << "--resume: got a run folder without a complete checkpoint, expected one; " << resume
        << "; name another, or give --resume never";
    return found;
  }
  if (const auto fault = fault_of(resume, control)) throw *fault;
  return described(resume, config);
}

CheckpointPath handed_on(const RunConfig& config,
                         const RunFolder& folder,
                         const CheckpointPath& last,
                         const Groups& groups) {
  const bool is_asked = config.save.export_from == "best" && config.save.best && !last.directory.empty();
  if (!is_asked) return last;
  Comm& control = *groups.control;
  const std::string& stage = config.stages.at(last.stage).name;
  std::string best = control.rank() == 0 ? folder.best_directory(stage) : "";
  best = broadcast_text(best, 0, control);
  if (best.empty() || best == last.directory) return last;
  if (const auto fault = fault_of(best, control)) {
    HANOK_LOG_RANK0(WARNING) << fault->what() << "; the last checkpoint takes the place of the best";
    return last;
  }
  return described(best, config);
}

void load_checkpoint_weights(const std::string& directory, Vlm& model) {
  const TensorStore store(directory);
  check_same_model(store, model.whole(), directory);
  read_weights(store, model.params(), model.groups());
}

TrainState load_checkpoint(const std::string& directory, Vlm& model, AdamW& optimizer) {
  const TensorStore store(directory);
  const Groups& groups = model.groups();
  const CheckpointState state = state_from_json(store.state(), directory);
  check_same_model(store, model.whole(), directory);
  check_same_trainable(store, model.whole(), directory);
  const bool converted = read_weights(store, model.params(), groups);
  ShardBuffers buffers = shard_buffers(optimizer);
  read_shards(store, model.params(), groups, buffers);
  optimizer.set_num_steps({.all = state.train.optimizer_steps, .with_pictures = state.train.picture_steps});
  // Stored weights of another dtype were rounded to it; the master values were not.
  if (converted) optimizer.publish();

  const std::string was = describe(state.mesh), is = describe(groups.mesh.shape());
  if (was != is || state.sequence_parallel != groups.sequence_parallel) {
    HANOK_LOG_RANK0(WARNING) << "layout: was " << was << ", is " << is
                             << "; weights and moments are the same bits, but sums may round otherwise from here on";
  }
  if (state.threads != at::get_num_threads()) {
    HANOK_LOG_RANK0(WARNING) << "threads: was " << state.threads << ", is " << at::get_num_threads()
                             << "; CPU sums may round otherwise from here on; set `threads` to repeat them bit for bit";
  }
  return state.train;
}

RunConfig checkpoint_config(const std::string& directory) {
  return parse_config(state_from_json(TensorStore(directory).state(), directory).config);
}

}  // namespace hanok
