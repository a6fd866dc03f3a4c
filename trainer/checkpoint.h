// What is saved, when it is complete, how many are kept; loading under any layout.
//
// A checkpoint is a TensorStore: for every weight "model/NAME" in the model's dtype; for every trainable one also
// "master/NAME", "m/NAME", "v/NAME" in f32; and the state as JSON (TrainState, resolved config, layout, versions).
// Every rank writes what it owns: weights by the rank that speaks for the piece, optimizer state by ZeRO-1 shard.
#pragma once

#include <memory>
#include <string>

#include "configs/schema/config.h"
#include "model/vlm.h"
#include "trainer/optimizer.h"
#include "trainer/run_folder.h"
#include "trainer/state.h"

namespace hanok {

class Checkpointer {
 public:
  /// `control`: host group of all ranks, used by save() and finish() only.
  Checkpointer(const RunConfig& config, const RunFolder& folder, const Groups& groups);
  ~Checkpointer();
  /// Copies to the host and returns; a thread writes shards, and the commit (manifest, rename, retention) happens in a
  /// later poll() or finish(). An earlier save still in flight is finished first. Collective. errors of the background
  /// write (kIo: full disk) are logged as ERROR on every rank and kept in failed(); training goes on.
  void save(const TrainState& state, const Vlm& model, AdamW& optimizer);
  /// Commits a finished write if there is one. Collective, cheap: called once a step.
  void poll();
  /// Waits for the write in flight and commits it. Collective.
  void finish();
  void mark_best(int64_t step);
  double last_stall_s() const;
  bool failed() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The newest complete checkpoint that passes verification, of this run folder, or the one at `path`. Damaged ones are
/// reported as WARNING and the one before is taken. Collective: every rank gets the same answer. Empty directory: none.
/// errors: kCheckpoint if `path` was named and is damaged, or every checkpoint of the folder is damaged
CheckpointPath find_checkpoint(const RunConfig& config,
                               const RunFolder& folder,
                               const std::string& resume,
                               const Groups& groups);

/// Reads the weights only (the next stage's start, evaluate, export). errors: kCheckpoint when it is of another model
void load_checkpoint_weights(const std::string& directory, Vlm& model);
/// Reads weights, master values and moments, resharding to the current layout bit-identically, and the state.
TrainState load_checkpoint(const std::string& directory, Vlm& model, AdamW& optimizer);
/// The resolved config that a checkpoint was written under.
RunConfig checkpoint_config(const std::string& directory);

}  // namespace hanok
