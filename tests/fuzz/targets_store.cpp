// Weight files and checkpoints.
#include <xxhash.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "dataio/file_io.h"
#include "dataio/safetensors.h"
#include "dataio/store/store_format.h"
#include "dataio/tensor_store.h"
#include "tests/fuzz/fuzz.h"

namespace hanok::fuzz {
namespace {

constexpr size_t kFixedBytes = 64 << 10;  // messages, the JSON reader's buffers
constexpr size_t kPerHeaderByte = 16;     // a metadata entry of 7 bytes is a map node of 100
constexpr size_t kPerJsonByte = 32;       // "0," is a JSON value of 16 bytes, three times while its list grows

// safetensors: the input is the file.

std::string safetensors(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(data_bytes, '\x11');
}

std::vector<std::string> safetensors_seeds() {
  return {
      safetensors("{}", 0),
      safetensors(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})", 24),
      safetensors(R"({"__metadata__":{"format":"pt","x":""},"w":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]},)"
                  R"("b":{"dtype":"U8","shape":[],"data_offsets":[8,9]},"e":{"dtype":"F64","shape":[0,7],)"
                  R"("data_offsets":[9,9]},"c":{"dtype":"I64","shape":[1,1,2],"data_offsets":[9,25]}}      )",
                  25),
      safetensors(R"({"\u00e9/\n":{"data_offsets":[0,3],"shape":[3],"dtype":"BOOL"},)"
                  R"("f":{"dtype":"F8_E4M3","shape":[5],"data_offsets":[3,8]}})",
                  8),
  };
}

size_t header_end(const std::string& input) {
  uint64_t length = 0;
  if (input.size() < 8) return input.size();
  std::memcpy(&length, input.data(), 8);
  return length <= input.size() - 8 ? 8 + length : input.size();
}

void mutate_safetensors(std::string& input, const std::string& other, Random& random) {
  const size_t end = header_end(input), data = input.size() - end;
  if (input.size() < 8 || random.one_in(10)) return mutate_bytes(input, other, random);
  if (random.one_in(12)) {  // more or less data than the header says
    const size_t change = random.few(40);
    return input.resize(random.one_in(2) ? input.size() + change : input.size() - std::min(change, data));
  }
  std::string header = input.substr(8, end - 8);
  if (random.one_in(6)) {
    mutate_bytes(header, other, random);
  } else {
    mutate_json(header, 0, header.size(), std::string_view(other).substr(std::min<size_t>(8, other.size())), random);
  }
  input = safetensors(header, 0) + input.substr(end);
}

void require(bool holds, const char* what) {
  if (!holds) throw std::logic_error(what);
}

/// Bound: 16 times the header. Accepted headers describe every data byte exactly once.
void run_safetensors(const std::string& input, Budget& budget) {
  const auto file_bytes = static_cast<int64_t>(input.size());
  budget.begin_phase("safetensors header", kFixedBytes + kPerHeaderByte * input.size());
  const SafetensorsHeader header = parse_safetensors_header(input, file_bytes, "fuzz.safetensors");
  budget.end_phase();
  std::vector<bool> taken(input.size() - static_cast<size_t>(header.data_begin));
  for (const auto& [name, entry] : header.tensors) {
    require(checked_size_bytes(entry.dtype, entry.shape) == entry.end - entry.begin, "safetensors: wrong size");
    require(entry.begin >= 0 && entry.end <= static_cast<int64_t>(taken.size()), "safetensors: data outside the file");
    for (int64_t i = entry.begin; i < entry.end; ++i) {
      require(!taken[i], "safetensors: a byte twice");
      taken[i] = true;
    }
  }
  for (const bool byte : taken) require(byte, "safetensors: a byte of no tensor");
  if (XXH3_64bits(input.data(), input.size()) % 16 != 0) return;  // the file system is slow
  put_file("fuzz.safetensors", input);
  budget.begin_phase("safetensors file", kFixedBytes + (kPerHeaderByte + 2) * input.size());
  const SafetensorsFile file(work_folder() + "/fuzz.safetensors");
  for (const auto& [name, entry] : file.header().tensors) {
    const Tensor values = file.view(name);
    require(static_cast<int64_t>(values.nbytes()) == entry.end - entry.begin, "safetensors: wrong view");
    const auto* bytes = static_cast<const uint8_t*>(values.const_data_ptr());
    for (size_t i = 0; i < values.nbytes(); ++i)
      require(bytes[i] == static_cast<uint8_t>(input[file.header().data_begin + entry.begin + i]),
              "safetensors: wrong bytes");
  }
}

// Checkpoints. The input: a byte of flags, then manifest, index and data of shard 0, of shard 1, between kCut. The
// flags say which hashes and sizes are put right before the store is opened, so that mutations get behind them.

constexpr std::string_view kCut = "\n%%\n";
constexpr size_t kNumParts = 5;
enum Repair : uint8_t { kSeal = 1, kIndexHash = 2, kSizes = 4, kHeaderHash = 8, kPieceHash = 16 };

std::array<std::string, kNumParts> parts_of(const std::string& input) {
  std::array<std::string, kNumParts> parts;
  size_t at = std::min<size_t>(1, input.size());
  for (size_t i = 0; i < kNumParts && at <= input.size(); ++i) {
    const size_t end = i + 1 < kNumParts ? std::min(input.find(kCut, at), input.size()) : input.size();
    parts[i] = input.substr(at, end - at);
    at = end + kCut.size();
  }
  return parts;
}

std::string joined(uint8_t flags, const std::array<std::string, kNumParts>& parts) {
  std::string out(1, static_cast<char>(flags));
  for (size_t i = 0; i < kNumParts; ++i) out += (i ? std::string(kCut) : "") + parts[i];
  return out;
}

std::vector<std::string> manifest_seeds() {
  std::vector<std::string> seeds;
  const auto add = [&](int num_shards,
                       const std::vector<StoredTensor>& tensors,
                       const std::vector<std::vector<StoredPiece>>& pieces,
                       const nlohmann::json& state) {
    const std::string folder = work_folder() + "/seed_store";
    for (int rank = 0; rank < num_shards; ++rank) write_store_shard(folder, rank, pieces[rank]);
    commit_store(folder, num_shards, tensors, state);
    std::array<std::string, kNumParts> parts;
    parts[0] = read_file(folder + "/" + std::string(kStoreManifest));
    for (int rank = 0; rank < num_shards; ++rank) {
      parts[1 + 2 * rank] = read_file(folder + "/" + store_index_name(rank));
      parts[2 + 2 * rank] = read_file(folder + "/" + store_data_name(rank));
    }
    seeds.push_back(joined(0xff, parts));
    std::filesystem::remove_all(folder);
  };
  const Tensor numbers = at::arange(12, at::kFloat);
  add(1, {{"w", at::kFloat, {3, 4}}}, {{{"w", {{0, 12}}, numbers}}}, {{"step", 7}});
  // Cut by columns, over two shards; a tensor that both hold; an empty one.
  const Tensor half = at::arange(6, at::kFloat), few = at::arange(3, at::kLong), none = at::empty({0}, at::kFloat);
  add(2,
      {{"a/w", at::kFloat, {3, 4}}, {"b", at::kLong, {3}}, {"e", at::kFloat, {0, 2}}},
      {{{"a/w", {{0, 2}, {4, 2}, {8, 2}}, half}, {"b", {{0, 3}}, few}, {"e", {}, none}},
       {{"a/w", {{2, 2}, {6, 2}, {10, 2}}, half}, {"b", {{0, 3}}, few}}},
      {{"step", 1}, {"stages", {{{"name", "s0"}}}}});
  return seeds;
}

void mutate_manifest(std::string& input, const std::string& other, Random& random) {
  auto parts = parts_of(input);
  const auto theirs = parts_of(other);
  const uint8_t flags = random.one_in(8) ? static_cast<uint8_t>(random.next()) : 0xff;
  const size_t which = random.below(kNumParts);
  std::string& part = parts[which];
  if (random.one_in(8)) {
    mutate_bytes(part, theirs[which], random);
  } else if (which == 2 || which == 4) {
    mutate_safetensors(part, theirs[which], random);
  } else {
    mutate_json(part, theirs[which], random);
  }
  input = joined(flags, parts);
}

/// Writes `value` behind each `key` in turn; stops where `value` has no more.
void put_behind(std::string& text, const std::string& key, const std::vector<std::string>& values) {
  size_t at = 0;
  for (const std::string& value : values) {
    at = text.find(key, at);
    if (at == std::string::npos) return;
    at += key.size();
    size_t end = at;
    while (end < text.size() && ((text[end] >= '0' && text[end] <= '9') || (text[end] >= 'a' && text[end] <= 'f')))
      ++end;
    text.replace(at, end - at, value);
  }
}

/// Bound: 32 times all files but the data of tensors, which are mapped, and one tensor more that is read.
void run_manifest(const std::string& input, Budget& budget) {
  const uint8_t flags = input.empty() ? 0 : static_cast<uint8_t>(input[0]);
  auto parts = parts_of(input);
  std::vector<std::string> index_hashes, index_bytes, data_bytes;
  for (size_t i = 1; i < kNumParts; i += 2) {
    if (flags & kHeaderHash) {
      put_behind(parts[i],
                 "\"header_xxh3\":\"",
                 {xxh3_text(std::string_view(parts[i + 1]).substr(0, header_end(parts[i + 1])))});
    }
    index_hashes.push_back(xxh3_text(parts[i]));
    index_bytes.push_back(std::to_string(parts[i].size()));
    data_bytes.push_back(std::to_string(parts[i + 1].size()));
  }
  if (flags & kIndexHash) put_behind(parts[0], "\"index_xxh3\":\"", index_hashes);
  if (flags & kSizes) {
    put_behind(parts[0], "\"index_bytes\":", index_bytes);
    put_behind(parts[0], "\"data_bytes\":", data_bytes);
  }
  constexpr size_t kSealBytes = 9 + 16;  // {"xxh3":"0123456789abcdef
  if (flags & kSeal && parts[0].size() > kSealBytes) parts[0].replace(9, 16, xxh3_text(parts[0].substr(kSealBytes)));
  static const bool made = std::filesystem::create_directories(work_folder() + "/store");
  require(made, "manifest: no folder");
  put_file("store/" + std::string(kStoreManifest), parts[0]);
  for (int rank = 0; rank < 2; ++rank) {
    put_file("store/" + store_index_name(rank), parts[1 + 2 * rank]);
    put_file("store/" + store_data_name(rank), parts[2 + 2 * rank]);
  }
  budget.begin_phase("checkpoint", kFixedBytes + kPerJsonByte * input.size());
  const TensorStore store(work_folder() + "/store");
  store.check_complete();
  for (const StoredTensor& tensor : store.tensors()) {
    const int64_t bytes = size_bytes(tensor.dtype, tensor.shape);
    require(bytes <= static_cast<int64_t>(input.size()), "manifest: more than the files hold");
    Tensor out = at::empty({bytes / static_cast<int64_t>(c10::elementSize(tensor.dtype))}, tensor.dtype);
    store.read(tensor.name, {{0, out.numel()}}, out);
  }
  store.verify();
}

// An index of shards beside one shard, {"w": F32 [2]}. Another file lies outside the folder: no index may reach it.

std::vector<std::string> index_seeds() {
  return {R"({"metadata":{"total_size":8},"weight_map":{"w":"a.safetensors"}})",
          R"({"weight_map":{"w":"a.safetensors","v":"../outside.safetensors"}})"};
}

/// Bound: 32 times the index.
void run_index(const std::string& input, Budget& budget) {
  static const bool made = [] {
    const bool fresh = std::filesystem::create_directories(work_folder() + "/weights");
    put_file("weights/a.safetensors", safetensors(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8));
    put_file("outside.safetensors", safetensors(R"({"v":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1));
    return fresh;
  }();
  require(made, "index: no folder");
  put_file("weights/model.safetensors.index.json", input);
  budget.begin_phase("weight index", kFixedBytes + kPerJsonByte * input.size());
  const WeightFolder folder(work_folder() + "/weights");
  if (folder.names().empty()) return;  // an index that names nothing
  require(folder.names() == std::vector<std::string>{"w"}, "index: other names");
  require(folder.view("w").numel() == 2, "index: another tensor");
}

void mutate_index(std::string& input, const std::string& other, Random& random) {
  static const std::vector<std::string> kWords = {
      "a.safetensors", "../outside.safetensors", "/dev/zero", "\"w\"", "./"};
  if (random.one_in(8)) return mutate_bytes(input, other, random);
  if (random.one_in(6)) return mutate_words(input, kWords, random);
  mutate_json(input, other, random);
}

}  // namespace

const std::vector<Target> kStoreTargets = {
    {"safetensors", 4096, safetensors_seeds, mutate_safetensors, run_safetensors},
    {"manifest", 8192, manifest_seeds, mutate_manifest, run_manifest},
    {"weight_index", 4096, index_seeds, mutate_index, run_index},
};

}  // namespace hanok::fuzz
