#include "dataio/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>

#include "base/error.h"
#include "dataio/file_io.h"
#include "dataio/store/strict_json.h"

namespace hanok {

namespace {

std::string message_of(int code) {
  return std::generic_category().message(code);
}

struct Mapping {
  std::shared_ptr<const char> bytes;
  int64_t size = 0;
};

Mapping map_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe would wait for its writer
  const int open_error = errno;
  HANOK_REQUIRE(fd >= 0 || open_error != ENOENT, kCheckpoint)
      << "safetensors file: got none, expected one; " << path << "; check the path, or fetch the file again";
  HANOK_REQUIRE(fd >= 0, kIo) << "open: got '" << message_of(open_error) << "', expected a readable file; " << path
                              << "; check the rights of the file";
  struct stat status {};
  const bool regular = ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  const int64_t size = regular ? static_cast<int64_t>(status.st_size) : 0;
  void* bytes = size > 0 ? ::mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
  const int map_error = errno;
  ::close(fd);  // the map keeps the file
  HANOK_REQUIRE(size > 0, kCheckpoint) << "safetensors file: got " << (regular ? "0 bytes" : "no regular file")
                                       << ", expected a file; " << path << "; fetch or write it again";
  HANOK_REQUIRE(bytes != MAP_FAILED, kIo) << "mmap: got '" << message_of(map_error) << "', expected a map of " << size
                                          << " bytes; " << path << "; check the limits on memory and maps";
  ::madvise(bytes, static_cast<size_t>(size), MADV_SEQUENTIAL);  // advice: a refusal costs speed only
  return {
      std::shared_ptr<const char>(static_cast<const char*>(bytes),
                                  [size](const char* p) { ::munmap(const_cast<char*>(p), static_cast<size_t>(size)); }),
      size};
}

std::string header_text(const std::string& path,
                        const std::vector<TensorPlan>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  // Assembled by hand: a JSON object would sort the names, and the order of the plan is the order of the data.
  std::string text = "{";
  if (!metadata.empty()) text += "\"__metadata__\":" + strict_json_text(metadata, path);
  std::set<std::string_view> names;
  int64_t begin = 0;
  for (const TensorPlan& plan : tensors) {
    HANOK_REQUIRE(plan.name != "__metadata__" && names.insert(plan.name).second, kShape)
        << "tensor " << shown(plan.name) << ": got this name twice, expected once; " << path << "; rename one";
    const int64_t end = begin + size_bytes(plan.dtype, plan.shape);
    const nlohmann::json entry = {
        {"dtype", std::string(dtype_name(plan.dtype))}, {"shape", plan.shape}, {"data_offsets", {begin, end}}};
    text += text.size() > 1 ? "," : "";
    text += strict_json_text(plan.name, path) + ":" + strict_json_text(entry, path);
    begin = end;
  }
  text += "}";
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {
  Mapping mapping = map_file(path);
  map_ = std::move(mapping.bytes);
  size_ = mapping.size;
  header_ = parse_safetensors_header({map_.get(), static_cast<size_t>(size_)}, size_, path);
}

const TensorEntry& SafetensorsFile::entry(const std::string& name) const {
  const auto found = header_.tensors.find(name);
  HANOK_REQUIRE(found != header_.tensors.end(), kCheckpoint)
      << "tensor " << shown(name) << ": got none, expected one of the " << header_.tensors.size()
      << " tensors of the file; " << path_ << "; check that the file belongs to this model";
  return found->second;
}

Tensor SafetensorsFile::view(const std::string& name) const {
  const TensorEntry& e = entry(name);
  const auto options = at::TensorOptions().dtype(e.dtype);
  if (e.begin == e.end) return at::empty(e.shape, options);
  const char* begin = map_.get() + header_.data_begin + e.begin;
  if (reinterpret_cast<uintptr_t>(begin) % c10::elementSize(e.dtype) != 0) {
    Tensor copy = at::empty(e.shape, options);
    std::memcpy(copy.mutable_data_ptr(), begin, static_cast<size_t>(e.end - e.begin));
    return copy;
  }
  return at::from_blob(
      const_cast<char*>(begin), e.shape, [map = map_](void*) {}, options);
}

std::string_view SafetensorsFile::bytes(const std::string& name) const {
  const TensorEntry& e = entry(name);
  return {map_.get() + header_.data_begin + e.begin, static_cast<size_t>(e.end - e.begin)};
}

void SafetensorsFile::forget(const std::string& name) const {
  forget(name, 0, static_cast<int64_t>(bytes(name).size()));
}

void SafetensorsFile::forget(const std::string& name, int64_t begin, int64_t size) const {
  const int64_t first = header_.data_begin + entry(name).begin + begin;
  forget_pages(first, first + size);
}

void SafetensorsFile::forget_pages(int64_t begin, int64_t end) const {
  // Whole pages, outwards: a page that a neighbour still needs comes back from the file when it is touched.
  const auto page = static_cast<int64_t>(::sysconf(_SC_PAGESIZE));
  begin = begin / page * page;
  ::madvise(const_cast<char*>(map_.get()) + begin, static_cast<size_t>(end - begin), MADV_DONTNEED);
}

bool SafetensorsFile::equals(const std::string& name, const Tensor& value) const {
  const TensorEntry& e = entry(name);
  if (e.dtype != value.scalar_type() || value.sizes() != at::IntArrayRef(e.shape)) return false;
  constexpr int64_t kStretch = 16 << 20;
  const auto* expected = static_cast<const char*>(value.const_data_ptr());
  bool is_same = true;
  for (int64_t begin = e.begin; is_same && begin < e.end; begin += kStretch) {
    const int64_t end = std::min(e.end, begin + kStretch), at = header_.data_begin + begin;
    is_same = std::memcmp(map_.get() + at, expected + (begin - e.begin), static_cast<size_t>(end - begin)) == 0;
    forget_pages(at, header_.data_begin + end);
  }
  return is_same;
}

struct WeightFolder::State {
  std::string folder;
  std::map<std::string, SafetensorsFile> files;         // by file name
  std::map<std::string, const SafetensorsFile*> owner;  // by tensor name

  const SafetensorsFile& file_of(const std::string& name) const {
    const auto found = owner.find(name);
    HANOK_REQUIRE(found != owner.end(), kCheckpoint)
        << "tensor " << shown(name) << ": got none, expected one of the " << owner.size() << " tensors of the folder; "
        << folder << "; check that the folder holds this model";
    return *found->second;
  }
  void open_single(const std::string& file) {
    const SafetensorsFile& opened = files.emplace(file, SafetensorsFile(folder + "/" + file)).first->second;
    for (const auto& [name, entry] : opened.header().tensors) owner[name] = &opened;
  }
  void open_shards(const std::string& index_path);
};

void WeightFolder::State::open_shards(const std::string& index_path) {
  const nlohmann::json index = parse_strict_json(read_file(index_path), index_path);
  HANOK_REQUIRE(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(), kCheckpoint)
      << "weight_map: got none, expected an object of tensor name -> file name; " << index_path
      << "; fetch or write the index again";
  for (const auto& [name, value] : index["weight_map"].items()) {
    const std::string shard = value.is_string() ? value.get<std::string>() : "";
    // A file name and nothing else: the index may not point outside the folder, nor at another format.
    const bool inside = shard.ends_with(".safetensors") && shard.find('/') == std::string::npos &&
                        shard.find("..") == std::string::npos && shard.find('\0') == std::string::npos;
    HANOK_REQUIRE(inside, kCheckpoint) << "tensor " << shown(name) << ": got " << shown(value.dump())
                                       << ", expected the name of a .safetensors file of this folder; " << index_path
                                       << "; do not use this folder unless you know who made it";
    if (!files.contains(shard)) files.emplace(shard, SafetensorsFile(folder + "/" + shard));
    const SafetensorsFile& file = files.at(shard);
    HANOK_REQUIRE(file.header().tensors.contains(name), kCheckpoint)
        << "tensor " << shown(name) << ": got none, expected it in " << shown(shard) << "; " << index_path
        << "; index and shards are of different models: fetch the folder again";
    owner[name] = &file;
  }
  for (const auto& [shard, file] : files) {
    for (const auto& [name, entry] : file.header().tensors) {
      const auto found = owner.find(name);
      HANOK_REQUIRE(found != owner.end() && found->second == &file, kCheckpoint)
          << "tensor " << shown(name) << " of " << shown(shard) << ": got no such entry in the index, expected one; "
          << index_path << "; index and shards are of different models: fetch the folder again";
    }
  }
}

WeightFolder::WeightFolder(const std::string& folder) : state_(std::make_unique<State>()) {
  state_->folder = folder;
  const std::string index = folder + "/model.safetensors.index.json";
  std::error_code ignored;
  if (std::filesystem::exists(folder + "/model.safetensors", ignored)) {  // transformers prefers it too
    state_->open_single("model.safetensors");
    return;
  }
  HANOK_REQUIRE(std::filesystem::exists(index, ignored), kCheckpoint)
      << "model weights: got neither model.safetensors nor model.safetensors.index.json, expected one; " << folder
      << "; check the path (pickle files such as pytorch_model.bin are never read: convert them to safetensors)";
  state_->open_shards(index);
}

WeightFolder::~WeightFolder() = default;

std::vector<std::string> WeightFolder::names() const {
  std::vector<std::string> names;
  for (const auto& [name, file] : state_->owner) names.push_back(name);
  return names;
}

bool WeightFolder::contains(const std::string& name) const {
  return state_->owner.contains(name);
}

const TensorEntry& WeightFolder::entry(const std::string& name) const {
  return state_->file_of(name).header().tensors.at(name);
}

Tensor WeightFolder::view(const std::string& name) const {
  return state_->file_of(name).view(name);
}

void WeightFolder::forget(const std::string& name) const {
  state_->file_of(name).forget(name);
}

bool WeightFolder::equals(const std::string& name, const Tensor& value) const {
  return state_->file_of(name).equals(name, value);
}

void write_safetensors(const std::string& path,
                       const std::vector<TensorPlan>& tensors,
                       const std::map<std::string, std::string>& metadata,
                       const std::function<Tensor(const std::string&)>& produce) {
  const std::string header = header_text(path, tensors, metadata);
  int64_t total = static_cast<int64_t>(header.size());
  for (const TensorPlan& plan : tensors) total += size_bytes(plan.dtype, plan.shape);
  OutputFile file(path, total);
  file.write(header.data(), header.size());
  for (const TensorPlan& plan : tensors) {
    Tensor value = produce(plan.name);
    HANOK_REQUIRE(value.defined() && value.scalar_type() == plan.dtype && value.sizes() == at::IntArrayRef(plan.shape),
                  kShape)
        << "tensor " << shown(plan.name) << ": got "
        << (value.defined() ? concat(c10::toString(value.scalar_type()), " ", value.sizes()) : "none") << ", expected "
        << c10::toString(plan.dtype) << " " << plan.shape << "; " << path << "; the plan and its producer disagree";
    value = value.to(at::kCPU).contiguous();
    file.write(value.const_data_ptr(), value.nbytes());
  }
  file.commit();
}

}  // namespace hanok
