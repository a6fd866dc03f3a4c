// Weight files by name: header checked in full before any byte is used, data through mmap.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/tensor.h"

namespace hanok {

struct TensorEntry {
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  int64_t begin = 0, end = 0;  // bytes, from the start of the data section
};

/// Header of one file, checked: length <= 100 MB and within the file, JSON object without duplicate keys, known dtypes,
/// no overflow, end - begin = size, no holes, no overlaps, file length exact.
struct SafetensorsHeader {
  std::map<std::string, TensorEntry> tensors;
  std::map<std::string, std::string> metadata;
  int64_t data_begin = 0;  // bytes from the start of the file
};
/// errors: kCheckpoint naming the file and the rule that was broken
SafetensorsHeader parse_safetensors_header(std::string_view bytes, int64_t file_size, const std::string& file);

/// One file, memory-mapped read-only. Tensors are views of the map: they stay valid while the object lives.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);
  ~SafetensorsFile();
  const SafetensorsHeader& header() const { return header_; }
  /// errors: kCheckpoint if the name is absent
  Tensor view(const std::string& name) const;
  /// Tells the kernel that the pages of this tensor are not needed any more (streaming loads).
  void forget(const std::string& name) const;

 private:
  std::string path_;
  SafetensorsHeader header_;
  int fd_ = -1;
  char* map_ = nullptr;
  int64_t size_ = 0;
};

/// All tensors of a model folder: model.safetensors, or the shards that model.safetensors.index.json names.
class WeightFolder {
 public:
  /// errors: kCheckpoint if neither exists, a shard is missing, or the index disagrees with the shards
  explicit WeightFolder(const std::string& folder);
  ~WeightFolder();
  std::vector<std::string> names() const;
  bool contains(const std::string& name) const;
  const TensorEntry& entry(const std::string& name) const;
  Tensor view(const std::string& name) const;
  void forget(const std::string& name) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Writes one file with the tensors in the order given, 8-byte aligned header, streaming: `produce(name)` is asked for
/// each tensor just before it is written. fsync before return. errors: kIo (full disk, read-only): the partial file is
/// removed.
struct TensorPlan {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
};
void write_safetensors(const std::string& path,
                       const std::vector<TensorPlan>& tensors,
                       const std::map<std::string, std::string>& metadata,
                       const std::function<Tensor(const std::string&)>& produce);

int64_t size_bytes(at::ScalarType dtype, const std::vector<int64_t>& shape);

}  // namespace hanok
