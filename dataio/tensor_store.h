// A directory of tensors that exists as a whole or not at all: every rank writes its shard files into NAME.tmp, the
// manifest (sizes and xxh3 of every tensor) comes last, then the directory is renamed. A directory without a valid
// manifest does not exist.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace hanok {

/// One stored piece: a stretch of a named global tensor, flattened. `runs` lists its stretches in order.
struct StoredRun {
  int64_t global_begin = 0, size = 0;
};
struct StoredPiece {
  std::string tensor;  // "optimizer.m/decoder.layers.0.attn.qkv.weight"
  std::vector<StoredRun> runs;
  Tensor values;  // 1-D, contiguous, on the host
};
/// The global tensors that the pieces of all ranks make up.
struct StoredTensor {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
};

/// Called by one rank: writes DIR.tmp/shard-RANK.safetensors and DIR.tmp/shard-RANK.json (runs, xxh3). fsync. errors:
/// kIo.
void write_store_shard(const std::string& directory, int rank, const std::vector<StoredPiece>& pieces);
/// Called by one rank after all shards are written: manifest.json (schema version, shards with sizes and hashes,
/// `state`), fsync, rename DIR.tmp -> DIR, fsync of the parent. errors: kIo.
void commit_store(const std::string& directory,
                  int num_shards,
                  const std::vector<StoredTensor>& tensors,
                  const nlohmann::json& state);

/// Reading side. Verifies before use.
class TensorStore {
 public:
  static constexpr int kSchemaVersion = 1;
  /// Opens and checks manifest, shard sizes and headers. errors: kCheckpoint saying what is missing, truncated, or
  /// newer
  explicit TensorStore(const std::string& directory);
  ~TensorStore();
  /// xxh3 of every piece against the manifest; reads all bytes. errors: kCheckpoint naming shard, tensor, both hashes.
  /// `index`, `count`: check only this rank's part of the shards.
  void verify(int index = 0, int count = 1) const;
  const nlohmann::json& state() const;
  const std::vector<StoredTensor>& tensors() const;
  bool contains(const std::string& tensor) const;
  /// Copies the wanted stretches of one global tensor into `out` (1-D host tensor; runs in order). Every element must
  /// be covered by some piece. errors: kCheckpoint if not.
  void read(const std::string& tensor, const std::vector<StoredRun>& runs, Tensor& out) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Removes DIR.tmp leftovers of earlier, interrupted writes.
void remove_unfinished_stores(const std::string& parent);
/// fsyncs a file or directory, and writes a small file by write-temp + fsync + rename. errors: kIo.
void sync_path(const std::string& path);
void write_file_atomically(const std::string& path, const std::string& bytes);
std::string read_file(const std::string& path);  // errors: kIo

}  // namespace hanok
