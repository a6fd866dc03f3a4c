// Which values of a rank go into a checkpoint, and where they lie in the global tensors. Private to trainer/.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dataio/tensor_store.h"
#include "parallel/grad_sync.h"
#include "parallel/param.h"
#include "parallel/side_stream.h"
#include "trainer/host_buffer.h"
#include "trainer/optimizer.h"

namespace hanok {

inline std::string model_key(const std::string& name) {
  return "model/" + name;
}

/// The optimizer's shard buffers, f32, laid out as `pieces` says.
struct ShardBuffers {
  std::vector<ShardPiece> pieces;
  Tensor master, m, v;
  struct Named {
    const char* prefix;  // "master/"
    Tensor ShardBuffers::*tensor;
  };
  static const std::vector<Named>& named();
};

/// Views of the optimizer's buffers.
ShardBuffers shard_buffers(AdamW& optimizer);

/// The stretches of the local tensor (flat_runs) for which this rank speaks among the ranks of tp: every element of the
/// weight has one speaker.
std::vector<FlatRun> spoken_runs(const ParamSpec& spec, const Groups& groups);
/// The parts of `runs` within local [begin, begin + size).
std::vector<FlatRun> clipped(const std::vector<FlatRun>& runs, int64_t begin, int64_t size);

/// What the pieces of all ranks make up.
std::vector<StoredTensor> stored_tensors(const ParamTable& params);

/// Host copies of this rank's part of a checkpoint. The memory is kept for the next one; for a GPU it is pinned.
class Snapshot {
 public:
  explicit Snapshot(at::Device device) : device_(device), side_(device, /*urgent=*/false) {}
  ~Snapshot();
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;
  /// Begins to make the memory that take() needs, beside everything else.
  void prepare(const ParamTable& params, const ShardBuffers& buffers, const Groups& groups);
  bool has_memory() const { return memory_ != nullptr; }  // or it is in the making
  /// Of prepare(); take() waits for it, and its failure is an error there unless it was taken before.
  Background& preparation() { return memory_->making(); }
  /// Begins to copy model values (each local tensor cut evenly over the ranks that hold the same) and optimizer shards,
  /// on a GPU beside the current stream: nothing may change them before copied(). The pieces stay valid until the next
  /// take(). errors: kDevice if the host has no room for them
  const std::vector<StoredPiece>& take(const ParamTable& params, const ShardBuffers& buffers, const Groups& groups);
  /// The same without a copy, for hosts that have no room for one: the pieces lie where training changes them, so that
  /// it must wait until they are written.
  const std::vector<StoredPiece>& lay_open(const ParamTable& params, const ShardBuffers& buffers, const Groups& groups);
  /// Gives the memory back; the next prepare() or take() makes it again.
  void give_up_memory() { memory_.reset(); }
  /// When the pieces may be read.
  const SideStream::Mark& copied() const { return copied_; }

 private:
  struct Source {
    std::string key;
    Tensor flat;
    std::vector<FlatRun> runs;
    int64_t begin, at;  // local index and place in `flat` of one and the same value
    /// What is stored of it, in order: neighbours in the local tensor are one, however far apart they lie in the global
    /// one.
    std::vector<Tensor> stretches() const;
  };
  static std::vector<Source> sources(const ParamTable& params, const ShardBuffers& buffers, const Groups& groups);
  void reserve(const std::vector<Source>& sources);
  at::Device device_;
  SideStream side_;
  SideStream::Mark copied_;
  std::vector<Source> sources_;  // until they are copied
  std::unique_ptr<HostBuffer> memory_;
  std::vector<StoredPiece> pieces_;
};

/// Fills the local values of every weight from a store, in whatever layout it was written. `of_dtype` converts where
/// the stored dtype is another. -> whether any was converted
bool read_weights(const TensorStore& store, ParamTable& params, const Groups& groups);
/// Fills the shard buffers.
void read_shards(const TensorStore& store, const ParamTable& params, const Groups& groups, ShardBuffers& buffers);

/// errors: kCheckpoint listing up to ten names that the store lacks, has beyond the model, or has in another shape
void check_same_model(const TensorStore& store, const ParamTable& params, const std::string& directory);
/// errors: kCheckpoint listing up to ten trainable weights without optimizer state
void check_same_trainable(const TensorStore& store, const ParamTable& params, const std::string& directory);

}  // namespace hanok
