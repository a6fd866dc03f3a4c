// Weight files by name: header checked in full before any byte is used, data through mmap.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
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

/// The format's name of a dtype ("BF16"), and back (none if unknown or not read here). errors: kShape if it has no name
std::string_view dtype_name(at::ScalarType dtype);
std::optional<at::ScalarType> dtype_from_name(std::string_view name);
/// errors: kShape if the shape has a negative dim or the size does not fit in 63 bits
int64_t size_bytes(at::ScalarType dtype, const std::vector<int64_t>& shape);
/// The same for shapes of unknown origin: none instead of an error.
std::optional<int64_t> checked_size_bytes(at::ScalarType dtype, const std::vector<int64_t>& shape);

/// Header of one file, checked: length <= 100 MB and within the file, JSON object without duplicate or unknown keys,
/// known dtypes, no overflow, end - begin = size, no holes, no overlaps, file length exact.
struct SafetensorsHeader {
  std::map<std::string, TensorEntry> tensors;
  std::map<std::string, std::string> metadata;
  int64_t data_begin = 0;  // bytes from the start of the file
};
/// `bytes`: the file, or at least its length field and header. errors: kCheckpoint naming the file and the rule that
/// was broken
SafetensorsHeader parse_safetensors_header(std::string_view bytes, int64_t file_size, const std::string& file);

/// One file, memory-mapped read-only. Tensors are views of the map and keep it alive; writing to them faults.
class SafetensorsFile {
 public:
  /// errors: kCheckpoint if it is missing or its header breaks a rule; kIo if it cannot be read
  explicit SafetensorsFile(const std::string& path);
  const SafetensorsHeader& header() const { return header_; }
  /// The bytes before the data section, as they are in the file.
  std::string_view header_bytes() const { return {map_.get(), static_cast<size_t>(header_.data_begin)}; }
  /// A copy where the file does not align the tensor to its element size. errors: kCheckpoint if the name is absent
  Tensor view(const std::string& name) const;
  /// Its bytes in the map. errors: as view()
  std::string_view bytes(const std::string& name) const;
  /// Tells the kernel that the pages of this tensor are not needed any more (streaming loads). Views stay valid.
  void forget(const std::string& name) const;
  /// The same of a part of its bytes.
  void forget(const std::string& name, int64_t begin, int64_t size) const;
  /// Whether the tensor has this dtype and shape and the same bytes. Read in stretches that are forgotten again: the
  /// whole of it is never resident. `value`: on the host, contiguous
  bool equals(const std::string& name, const Tensor& value) const;

 private:
  const TensorEntry& entry(const std::string& name) const;
  void forget_pages(int64_t begin, int64_t end) const;  // of the file

  std::string path_;
  SafetensorsHeader header_;
  std::shared_ptr<const char> map_;
  int64_t size_ = 0;
};

/// All tensors of a model folder: model.safetensors, or else the shards that model.safetensors.index.json names. Every
/// name of the index is in its shard, every tensor of a shard is in the index, and no shard lies outside the folder.
/// Pickle is never read.
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
  bool equals(const std::string& name, const Tensor& value) const;  // as SafetensorsFile has it

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct TensorPlan {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
};
/// Writes one file with the tensors in the order given, 8-byte aligned header, streaming: `produce(name)` is asked for
/// each tensor just before it is written (any device; dtype and shape as planned). Order wider dtypes first: data lie
/// end to end, so a wide dtype behind an odd number of bytes is unaligned for every reader. fsync before return.
/// errors: kIo (full disk, read-only): the partial file is removed and an earlier file of that name left as it was;
/// kShape if a tensor is not as planned or planned twice
void write_safetensors(const std::string& path,
                       const std::vector<TensorPlan>& tensors,
                       const std::map<std::string, std::string>& metadata,
                       const std::function<Tensor(const std::string&)>& produce);

}  // namespace hanok
