// A directory of tensors that exists as a whole or not at all: every rank writes its shard files into NAME.tmp, the
// manifest (sizes and hashes, which cover every byte of every file) comes last, then the directory is renamed. A
// directory without a valid manifest does not exist.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "dataio/file_io.h"

namespace hanok {

/// A stretch of a named global tensor, flattened.
struct StoredRun {
  int64_t global_begin = 0, size = 0;
};
/// What one rank holds of a tensor: `values` are its `runs`, end to end.
struct StoredPiece {
  std::string tensor;  // "optimizer.m/decoder.layers.0.attn.qkv.weight"
  std::vector<StoredRun> runs;
  Tensor values;  // 1-D, contiguous; those on a device are brought to the host when their turn comes
};
/// The global tensors that the pieces of all ranks make up.
struct StoredTensor {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
};

/// Called by each rank, at once or in any order: writes DIR.tmp/shard-RANK.safetensors and DIR.tmp/shard-RANK.json
/// (runs, xxh3). fsync. One piece a tensor at most. errors: kIo (the partial file is removed); kShape if values do not
/// fit runs
void write_store_shard(const std::string& directory, int rank, const std::vector<StoredPiece>& pieces);
/// Called by one rank after all shards are written: manifest.json (schema version, shards with sizes and hashes,
/// `state`: any JSON with finite numbers), fsync, rename DIR.tmp -> DIR (replacing an earlier DIR), fsync of the
/// parent. Before the rename the store is opened, and every element of every tensor must be in some piece. errors: kIo;
/// kCheckpoint if the shards do not make up the tensors. An earlier DIR is then as it was
void commit_store(const std::string& directory,
                  int num_shards,
                  const std::vector<StoredTensor>& tensors,
                  const nlohmann::json& state);

/// Reading side. Verifies before use.
class TensorStore {
 public:
  static constexpr int kSchemaVersion = 1;
  /// Opens and checks manifest, shard sizes, headers and runs: all but the tensor data, which verify() checks.
  /// errors: kCheckpoint saying what is missing, damaged, truncated, or newer
  explicit TensorStore(const std::string& directory);
  ~TensorStore();
  /// xxh3 of every piece against the manifest; reads all bytes. errors: kCheckpoint naming shard, tensor, both hashes.
  /// `index`, `count`: check only this rank's part of the bytes; all parts together are all bytes.
  void verify(int index = 0, int count = 1, int64_t num_threads = 1) const;
  /// Every element of every tensor is in some piece. Reads no tensor data. errors: kCheckpoint naming what is missing
  void check_complete() const;
  const nlohmann::json& state() const;
  const std::vector<StoredTensor>& tensors() const;
  bool contains(const std::string& tensor) const;
  /// Copies the wanted stretches of one global tensor into `out` (contiguous host tensor of its dtype; runs in order),
  /// from whatever pieces hold them; reads no other bytes. Pieces may overlap: replicas were equal when they were
  /// written. errors: kCheckpoint naming the tensor if it is absent, or its first missing index; kShape if runs or
  /// `out` do not fit
  void read(const std::string& tensor, const std::vector<StoredRun>& runs, Tensor& out) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Removes the folders PARENT/*.tmp, which interrupted writes left. Not while somebody writes there. errors: kIo
void remove_unfinished_stores(const std::string& parent);

}  // namespace hanok
