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

/// One for each stage (its groups are the stage's layout). The first save() clears what interrupted saves left, and
/// sets aside checkpoints from its own step on: they are of a course that the run has left.
class Checkpointer {
 public:
  Checkpointer(const RunConfig& config, const RunFolder& folder, const Groups& groups);
  /// Waits for files in the making, but commits nothing: call finish() first.
  ~Checkpointer();
  /// Begins to copy to the host and returns; on a GPU the copies run beside the next step, whose update waits for them.
  /// The first save also waits for the memory of that copy. A thread writes shards, and the commit (manifest, rename,
  /// retention, by world rank 0) follows in the background once poll() or finish() has seen all ranks done. An earlier
  /// save still in flight is finished first. Where a host has no room for the copy, which is said (WARNING), or none is
  /// wanted (save.background), the shards are written from the device before this returns. Collective. Failures (kIo:
  /// full disk, read-only) are logged as ERROR by world rank 0 and kept in failed(); earlier checkpoints stay as they
  /// are and training goes on.
  void save(const TrainState& state, const Vlm& model, AdamW& optimizer);
  /// A save will follow: a thread begins to make the memory for its copy, beside training. Later calls do nothing.
  void expect_save(const Vlm& model, AdamW& optimizer);
  /// Moves a save in flight on if all ranks have done their part. Collective, cheap: called once a step.
  void poll();
  /// Waits until the save in flight is committed, or has failed. Collective.
  void finish();
  /// The checkpoint of this step is the best of its stage: it is kept. Before or after its save().
  void mark_best(int64_t step);
  double last_stall_s() const;  // that the latest save() kept its caller
  bool failed() const;          // the latest save that ended

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Whether a stage that has come to `step` will be saved later, if nothing ends it early. `is_judged`: its states are
/// evaluated.
bool save_follows(const SaveConfig& save, bool is_judged, int64_t step, int64_t num_steps);

/// `resume` auto: the newest complete checkpoint of this run folder that passes verification; damaged ones are reported
/// as WARNING and the one before is taken. `resume` never: none. Else: the checkpoint, or the run folder, at this path.
/// Every byte is verified, shared out over the ranks. Collective: every rank gets the same answer. Empty directory:
/// none. errors: kCheckpoint if a named one is absent or damaged, or every checkpoint of the folder is damaged
CheckpointPath find_checkpoint(const RunConfig& config,
                               const RunFolder& folder,
                               const std::string& resume,
                               const Groups& groups);

/// How often a checkpoint that is removed while it is read makes way for a newer one.
constexpr int kReadsBesideATraining = 10;
/// Whether a checkpoint that could not be read is there no more, by world rank 0: a run that trains beside this one
/// keeps only its newest. Collective.
bool was_removed(const std::string& directory, Comm& control);

/// What a stage that went as far as `last` hands on to the next one and to a model folder: with save.export best the
/// checkpoint marked best of its stage, if it passes verification (else WARNING), or `last`. Collective.
CheckpointPath handed_on(const RunConfig& config,
                         const RunFolder& folder,
                         const CheckpointPath& last,
                         const Groups& groups);

/// Reads the weights only (the next stage's start, evaluate, export). errors: kCheckpoint when it is of another model,
/// with the names and shapes that differ
void load_checkpoint_weights(const std::string& directory, Vlm& model);
/// Reads weights, master values and moments, resharding to the current layout bit-identically, and the state.
/// Collective over the grad group. Says so (WARNING) when layout or threads differ, for then sums may round otherwise.
/// errors: kCheckpoint as above, or when a trainable weight has no optimizer state in it
TrainState load_checkpoint(const std::string& directory, Vlm& model, AdamW& optimizer);
/// The resolved config that a checkpoint was written under.
RunConfig checkpoint_config(const std::string& directory);

}  // namespace hanok
