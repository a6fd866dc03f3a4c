// Saving: host copy, shards in the background, commit once every rank has written.
#include "trainer/checkpoint.h"

#include <ATen/Parallel.h>
#include <c10/util/accumulate.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/log.h"
#include "configs/schema/read.h"
#include "trainer/agree.h"
#include "trainer/background.h"
#include "trainer/checkpoint_pieces.h"
#include "trainer/checkpoint_state.h"
#include "trainer/host_memory.h"
#include "trainer/progress.h"
#include "trainer/step.h"

namespace hanok {
namespace {

/// Ranks that wait for a slow disk meet this often, so that nobody waits longer than the stall timeout.
constexpr auto kHeartbeat = std::chrono::seconds(2);

double bytes_of(const std::vector<StoredTensor>& tensors) {
  double bytes = 0;
  for (const StoredTensor& tensor : tensors)
    bytes += static_cast<double>(c10::multiply_integers(tensor.shape) * c10::elementSize(tensor.dtype));
  return bytes;
}

}  // namespace

struct Checkpointer::State {
  enum class Phase { kIdle, kWriting, kCommitting };
  struct InFlight {
    std::string stage_name, directory;
    int64_t step = 0;
    double began = 0;
    std::vector<StoredTensor> tensors;
    nlohmann::json state;
  };

  RunConfig config;
  const RunFolder& folder;
  Groups groups;
  Phase phase = Phase::kIdle;
  // Shared with the writer, which may outlive this object (see ~Background).
  std::shared_ptr<InFlight> in_flight;
  std::shared_ptr<Snapshot> snapshot;
  Background background;
  bool is_first = true, failed = false;
  double last_stall_s = 0;
  int64_t best_step = -1, committed_step = -1;
  std::string committed_stage;

  bool is_root() const { return groups.rank == 0; }
  void prepare(int stage);
  /// Begins to make the memory of the copy from which is written while training goes on.
  void begin_memory(const Vlm& model, AdamW& optimizer);
  /// Nothing, or why some rank's host has no room for the copy; then no rank has one.
  std::optional<Error> await_memory();
  void require_memory_for_shards();
  void start_commit();
  /// Whether all ranks have done their part of the phase; then the next phase begins.
  bool advance(std::chrono::milliseconds patience);
  void end_phase();
  void fail(const Error& failure);
  void mark_if_committed();
};

void Checkpointer::State::prepare(int stage) {
  run_together(*groups.control, [&] {
    if (!is_root()) return;
    const std::string parent = std::filesystem::path(in_flight->directory).parent_path().string();
    std::error_code error;
    std::filesystem::create_directories(parent, error);
    HANOK_REQUIRE(!error, kIo) << "checkpoint: got '" << error.message()
                               << "' when making its folder, expected success; " << parent
                               << "; check rights and space";
    remove_unfinished_stores(parent);
    if (is_first) folder.set_aside_from(stage_names(config), stage, in_flight->step);
  });
  is_first = false;
}

void Checkpointer::State::begin_memory(const Vlm& model, AdamW& optimizer) {
  if (!snapshot) snapshot = std::make_shared<Snapshot>(model.device());
  if (config.save.background && !snapshot->has_memory())
    snapshot->prepare(model.params(), shard_buffers(optimizer), groups);
}

std::optional<Error> Checkpointer::State::await_memory() {
  if (!config.save.background) return {};
  Background& making = snapshot->preparation();
  while (!all_ended(making, kHeartbeat, *groups.control)) {
  }
  std::optional<Error> failure = first_failure(making.take(), *groups.control);
  if (failure) snapshot->give_up_memory();  // the next save tries again
  return failure;
}

/// Asked when the copy has its memory.
void Checkpointer::State::require_memory_for_shards() {
  run_together(*groups.control, [&] {
    if (is_root())
      require_memory_for_files(std::filesystem::path(in_flight->directory).parent_path().string(),
                               bytes_of(in_flight->tensors),
                               host_memory().available_bytes,
                               snapshot->has_memory());
  });
}

void Checkpointer::State::start_commit() {
  phase = Phase::kCommitting;
  if (!is_root()) return;
  const bool is_best = in_flight->step == best_step;
  // A copy of the folder's path: the writer may outlive the folder.
  background.start([job = in_flight,
                    path = folder.path(),
                    names = stage_names(config),
                    keep = config.save.keep,
                    num_shards = groups.mesh.world(),
                    is_best] {
    const RunFolder run(path);
    commit_store(job->directory, num_shards, job->tensors, job->state);
    if (is_best) run.set_best(job->stage_name, job->step);
    run.prune(names, keep);
  });
}

bool Checkpointer::State::advance(std::chrono::milliseconds patience) {
  if (!all_ended(background, patience, *groups.control)) return false;
  end_phase();
  return true;
}

void Checkpointer::State::end_phase() {
  if (const auto failure = first_failure(background.take(), *groups.control)) return fail(*failure);
  if (phase == Phase::kWriting) return start_commit();
  phase = Phase::kIdle;
  failed = false;
  committed_step = in_flight->step;
  committed_stage = in_flight->stage_name;
  mark_if_committed();
  HANOK_LOG_RANK0(INFO) << "checkpoint " << in_flight->directory
                        << printed(" is complete: %.3f GB", bytes_of(in_flight->tensors) / 1e9)
                        << printed(" after %.2f s", now_s() - in_flight->began);
}

void Checkpointer::State::fail(const Error& failure) {
  phase = Phase::kIdle;
  failed = true;
  HANOK_LOG_RANK0(ERROR) << "checkpoint of step " << in_flight->step << " was not saved: " << failure.what()
                         << "; training goes on, earlier checkpoints are as they were";
  if (!is_root()) return;
  try {
    remove_unfinished_stores(std::filesystem::path(in_flight->directory).parent_path().string());
  } catch (const Error& error) {
    HANOK_LOG(WARNING) << error.what();
  }
}

void Checkpointer::State::mark_if_committed() {
  if (!is_root() || best_step < 0 || best_step != committed_step) return;
  try {
    folder.set_best(committed_stage, best_step);
  } catch (const Error& error) {
    HANOK_LOG(ERROR) << "best checkpoint was not marked: " << error.what();
  }
}

Checkpointer::Checkpointer(const RunConfig& config, const RunFolder& folder, const Groups& groups)
    : state_(new State{.config = config, .folder = folder, .groups = groups}) {}

Checkpointer::~Checkpointer() = default;

void Checkpointer::save(const TrainState& train, const Vlm& model, AdamW& optimizer) {
  State& s = *state_;
  const double start = now_s();
  finish();
  const std::string& stage_name = s.config.stages.at(train.stage).name;
  s.in_flight = std::make_shared<State::InFlight>();
  s.in_flight->stage_name = stage_name;
  s.in_flight->directory = s.folder.checkpoint(stage_name, train.step);
  s.in_flight->step = train.step;
  s.in_flight->began = start;
  s.in_flight->tensors = stored_tensors(model.whole());
  s.begin_memory(model, optimizer);
  std::optional<Error> no_room;
  try {
    s.prepare(train.stage);
    no_room = s.await_memory();
    s.require_memory_for_shards();
  } catch (const Error& error) {
    return s.fail(error);
  }
  if (no_room) {
    HANOK_LOG_RANK0(WARNING) << no_room->what() << "; training waits while it is written without a copy";
  }
  s.in_flight->state = to_json(CheckpointState{.train = train,
                                               .stage_name = stage_name,
                                               .config = echo(s.config),
                                               .mesh = s.groups.mesh.shape(),
                                               .sequence_parallel = s.groups.sequence_parallel,
                                               .threads = at::get_num_threads()});
  const ShardBuffers buffers = shard_buffers(optimizer);
  Snapshot& snapshot = *s.snapshot;
  const bool waits = no_room || !s.config.save.background;
  const std::vector<StoredPiece>& pieces =
      waits ? snapshot.lay_open(model.params(), buffers, s.groups) : snapshot.take(model.params(), buffers, s.groups);
  optimizer.update_after(snapshot.copied());
  s.phase = State::Phase::kWriting;
  s.background.start([job = s.in_flight, snapshot = s.snapshot, &pieces, rank = s.groups.rank] {
    snapshot->copied().wait_on_host();
    write_store_shard(job->directory, rank, pieces);
  });
  if (waits) finish();
  s.last_stall_s = now_s() - start;
}

void Checkpointer::expect_save(const Vlm& model, AdamW& optimizer) {
  state_->begin_memory(model, optimizer);
}

void Checkpointer::poll() {
  if (state_->phase != State::Phase::kIdle) state_->advance(std::chrono::milliseconds(0));
}

void Checkpointer::finish() {
  while (state_->phase != State::Phase::kIdle) state_->advance(kHeartbeat);
}

void Checkpointer::mark_best(int64_t step) {
  state_->best_step = step;
  if (state_->phase != State::Phase::kCommitting) state_->mark_if_committed();
}

double Checkpointer::last_stall_s() const {
  return state_->last_stall_s;
}

bool Checkpointer::failed() const {
  return state_->failed;
}

bool save_follows(const SaveConfig& save, bool is_judged, int64_t step, int64_t num_steps) {
  if (step >= num_steps) return false;
  const bool is_due = save.every > 0 && num_steps / save.every > step / save.every;
  return save.at_end || is_due || (is_judged && save.best);
}

}  // namespace hanok
