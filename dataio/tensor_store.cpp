#include "dataio/tensor_store.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/error.h"
#include "dataio/ordered_workers.h"
#include "dataio/safetensors.h"
#include "dataio/store/store_format.h"
#include "dataio/store/strict_json.h"
#include "dataio/store/strided_runs.h"

namespace hanok {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::string_view kDamaged = "; the checkpoint is damaged: use an earlier one";

std::vector<StridedRun> runs_from(const Json& list, const std::string& file) {
  std::vector<StridedRun> runs;
  for (const Json& item : list) {
    HANOK_REQUIRE(item.is_array() && item.size() == 4, kCheckpoint)
        << "run: got " << shown(item.dump()) << ", expected [begin, size, stride, count]; " << file << kDamaged;
    runs.push_back(
        {json_count(item[0], file), json_count(item[1], file), json_count(item[2], file), json_count(item[3], file)});
  }
  return runs;
}

}  // namespace

struct TensorStore::State {
  struct Piece {
    size_t shard = 0;
    std::string tensor;
    std::vector<StridedRun> runs;
    std::string xxh3;
  };
  struct Entry {
    size_t tensor = 0;           // in `tensors`
    std::vector<size_t> pieces;  // in `pieces`
  };

  std::string directory;
  Json state;
  std::vector<StoredTensor> tensors;
  std::vector<SafetensorsFile> shards;
  std::vector<Piece> pieces;  // shard by shard, in the order of their bytes
  std::map<std::string, Entry> entries;

  explicit State(const std::string& directory);
  std::string path(std::string_view file) const { return concat(directory, "/", file); }
  Json open_manifest() const;
  void add_tensors(const Json& list, const std::string& file);
  const SafetensorsFile& add_shard_data(const std::string& file, const std::string& header_xxh3);
  void add_shard(int rank, const Json& shard);
  void add_piece(const Json& item, const SafetensorsFile& data, const std::string& file);
  int64_t num_elements(const Entry& entry) const;
  const Entry& entry(const std::string& tensor) const;
  void gather(const std::string& tensor, const std::vector<StoredRun>& runs, const CopyRun& copy) const;
  void verify(const Piece& piece) const;
};

TensorStore::State::State(const std::string& directory) : directory(directory) {
  const std::string file = path(kStoreManifest);
  Json manifest = open_manifest();
  add_tensors(json_list(manifest, "tensors", file), file);
  const Json& list = json_list(manifest, "shards", file);
  for (size_t rank = 0; rank < list.size(); ++rank) add_shard(static_cast<int>(rank), list[rank]);
  state = std::move(manifest["state"]);
}

Json TensorStore::State::open_manifest() const {
  const std::string file = path(kStoreManifest);
  std::error_code ignored;
  HANOK_REQUIRE(fs::exists(file, ignored), kCheckpoint)
      << "checkpoint manifest: got none, expected one; " << file
      << "; the path is wrong or the save was interrupted: use another checkpoint";
  const std::string text = read_file(file);
  Json manifest = parse_strict_json(text, file);
  const int64_t version = json_count(manifest, "schema_version", file);
  HANOK_REQUIRE(version <= kSchemaVersion, kCheckpoint)
      << "checkpoint schema_version: got " << version << ", expected at most " << kSchemaVersion << "; " << file
      << "; it was written by a newer version of this program: use that version";
  HANOK_REQUIRE(is_sealed(text), kCheckpoint)
      << "checkpoint manifest: got bytes that do not match its xxh3, expected the file as it was written; " << file
      << kDamaged;
  return manifest;
}

void TensorStore::State::add_tensors(const Json& list, const std::string& file) {
  for (const Json& item : list) {
    StoredTensor tensor{json_string(item, "name", file), at::kFloat, {}};
    const std::string dtype = json_string(item, "dtype", file);
    const std::optional<at::ScalarType> known = dtype_from_name(dtype);
    HANOK_REQUIRE(known.has_value(), kCheckpoint) << "tensor " << shown(tensor.name) << ": got dtype " << shown(dtype)
                                                  << ", expected one of safetensors'; " << file << kDamaged;
    tensor.dtype = *known;
    for (const Json& dim : json_list(item, "shape", file)) tensor.shape.push_back(json_count(dim, file));
    HANOK_REQUIRE(checked_size_bytes(tensor.dtype, tensor.shape), kCheckpoint)
        << "tensor " << shown(tensor.name) << ": got shape " << tensor.shape
        << ", expected one whose size fits in 63 bits; " << file << kDamaged;
    HANOK_REQUIRE(entries.emplace(tensor.name, Entry{tensors.size(), {}}).second, kCheckpoint)
        << "tensor " << shown(tensor.name) << ": got it twice, expected once; " << file << kDamaged;
    tensors.push_back(std::move(tensor));
  }
}

/// What makes a header unreadable is of less use than that it is not the one that was written.
const SafetensorsFile& TensorStore::State::add_shard_data(const std::string& file, const std::string& header_xxh3) {
  try {
    return shards.emplace_back(file);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kCheckpoint) throw;
    const std::string what = error.what();
    HANOK_FAIL(kCheckpoint) << "checkpoint header: got one that cannot be read (" << what.substr(0, what.find(';'))
                            << "), expected the one with xxh3 " << header_xxh3 << "; " << file << kDamaged;
  }
}

void TensorStore::State::add_shard(int rank, const Json& shard) {
  const std::string manifest = path(kStoreManifest);
  const std::string index_path = path(store_index_name(rank)), data_path = path(store_data_name(rank));
  std::error_code error;
  for (const auto& [file, key] : {std::pair(index_path, "index_bytes"), std::pair(data_path, "data_bytes")}) {
    const int64_t expected = json_count(shard, key, manifest);
    const auto size = fs::file_size(file, error);
    HANOK_REQUIRE(!error, kCheckpoint) << "checkpoint file: got '" << error.message() << "', expected a file of "
                                       << expected << " bytes; " << file
                                       << "; the checkpoint is incomplete: use an earlier one";
    HANOK_REQUIRE(size == static_cast<uint64_t>(expected), kCheckpoint)
        << "checkpoint file: got " << size << " bytes, expected " << expected << "; " << file << kDamaged;
  }
  const std::string text = read_file(index_path);
  const std::string expected = json_string(shard, "index_xxh3", manifest), got = xxh3_text(text);
  HANOK_REQUIRE(got == expected, kCheckpoint)
      << "checkpoint file: got xxh3 " << got << ", expected " << expected << "; " << index_path << kDamaged;
  const Json index = parse_strict_json(text, index_path);
  const std::string header = json_string(index, "header_xxh3", index_path);
  const SafetensorsFile& data = add_shard_data(data_path, header);
  const std::string got_header = xxh3_text(data.header_bytes());
  HANOK_REQUIRE(got_header == header, kCheckpoint)
      << "checkpoint header: got xxh3 " << got_header << ", expected " << header << "; " << data_path << kDamaged;
  const Json& list = json_list(index, "pieces", index_path);
  HANOK_REQUIRE(list.size() == data.header().tensors.size(), kCheckpoint)
      << "checkpoint pieces: got " << list.size() << ", expected the " << data.header().tensors.size() << " tensors of "
      << data_path << "; " << index_path << kDamaged;
  for (const Json& item : list) add_piece(item, data, index_path);
}

void TensorStore::State::add_piece(const Json& item, const SafetensorsFile& data, const std::string& file) {
  Piece piece{shards.size() - 1,
              json_string(item, "tensor", file),
              runs_from(json_list(item, "runs", file), file),
              json_string(item, "xxh3", file)};
  const auto found = entries.find(piece.tensor);
  HANOK_REQUIRE(found != entries.end(), kCheckpoint)
      << "piece of " << shown(piece.tensor) << ": got no such tensor in the manifest, expected one; " << file
      << kDamaged;
  Entry& entry = found->second;
  // One piece a tensor and shard: with equal counts, pieces and stored tensors are then the same set.
  HANOK_REQUIRE(entry.pieces.empty() || pieces[entry.pieces.back()].shard != piece.shard, kCheckpoint)
      << "piece of " << shown(piece.tensor) << ": got it twice, expected once; " << file << kDamaged;
  const StoredTensor& tensor = tensors[entry.tensor];
  const auto stored = data.header().tensors.find(piece.tensor);
  const int64_t elements = count_elements(piece.runs, num_elements(entry));
  HANOK_REQUIRE(elements >= 0, kCheckpoint)
      << "piece of " << shown(piece.tensor) << ": got runs that leave the tensor, expected stretches within its "
      << num_elements(entry) << " elements; " << file << kDamaged;
  HANOK_REQUIRE(stored != data.header().tensors.end() && stored->second.dtype == tensor.dtype &&
                    stored->second.shape == std::vector<int64_t>{elements} &&
                    stored->second.begin == json_count(item, "offset", file),
                kCheckpoint)
      << "piece of " << shown(piece.tensor) << ": got other values than described, expected " << elements << " of "
      << dtype_name(tensor.dtype) << " at the given offset; " << file << kDamaged;
  entry.pieces.push_back(pieces.size());
  pieces.push_back(std::move(piece));
}

int64_t TensorStore::State::num_elements(const Entry& entry) const {
  const StoredTensor& tensor = tensors[entry.tensor];
  return size_bytes(tensor.dtype, tensor.shape) / static_cast<int64_t>(c10::elementSize(tensor.dtype));
}

const TensorStore::State::Entry& TensorStore::State::entry(const std::string& tensor) const {
  const auto found = entries.find(tensor);
  HANOK_REQUIRE(found != entries.end(), kCheckpoint)
      << "tensor " << shown(tensor) << ": got none, expected one of the " << entries.size()
      << " tensors of the checkpoint; " << directory << "; the checkpoint is of another model or stage";
  return found->second;
}

void TensorStore::State::gather(const std::string& tensor,
                                const std::vector<StoredRun>& runs,
                                const CopyRun& copy) const {
  const Entry& e = entry(tensor);
  const int64_t elements = num_elements(e);
  for (const StoredRun& run : runs) {
    HANOK_REQUIRE(run.global_begin >= 0 && run.size >= 0 && run.size <= elements - run.global_begin, kShape)
        << "run of " << shown(tensor) << ": got " << run.size << " elements from " << run.global_begin
        << ", expected a stretch of its " << elements << "; " << directory << "; the checkpoint is of another model";
  }
  std::vector<const std::vector<StridedRun>*> stored;
  for (const size_t piece : e.pieces) stored.push_back(&pieces[piece].runs);
  const int64_t missing = match_runs(stored, runs, copy);
  HANOK_REQUIRE(missing < 0, kCheckpoint)
      << "tensor " << shown(tensor) << ": got no piece with element " << missing << ", expected all of its " << elements
      << " elements in " << shards.size() << " shards; " << directory
      << "; the checkpoint is incomplete: use an earlier one";
}

TensorStore::TensorStore(const std::string& directory) : state_(std::make_unique<State>(directory)) {}

TensorStore::~TensorStore() = default;

void TensorStore::State::verify(const Piece& piece) const {
  const SafetensorsFile& shard = shards[piece.shard];
  const std::string_view bytes = shard.bytes(piece.tensor);
  const std::string got = xxh3_text(bytes);
  HANOK_REQUIRE(got == piece.xxh3, kCheckpoint)
      << "tensor " << shown(piece.tensor) << ": got xxh3 " << got << ", expected " << piece.xxh3 << "; "
      << path(store_data_name(static_cast<int>(piece.shard))) << kDamaged;
  shard.forget(piece.tensor);
}

void TensorStore::verify(int index, int count, int64_t num_threads) const {
  assert(0 <= index && index < count);
  const auto bytes_of = [&](const State::Piece& piece) {
    return static_cast<int64_t>(state_->shards[piece.shard].bytes(piece.tensor).size());
  };
  int64_t total = 0;
  for (const State::Piece& piece : state_->pieces) total += bytes_of(piece);
  // Equal stretches of bytes in shard order: with as many ranks as shards, each reads about its own.
  const auto cut = [&](int64_t part) { return total / count * part + std::min(part, total % count); };
  std::vector<const State::Piece*> own;
  int64_t begin = 0;
  for (const State::Piece& piece : state_->pieces) {
    const int64_t size = bytes_of(piece);
    if (size > 0 && begin >= cut(index) && begin < cut(index + 1)) own.push_back(&piece);
    begin += size;
  }
  work_in_threads(num_threads, own, [&](const State::Piece* piece) { state_->verify(*piece); });
}

void TensorStore::check_complete() const {
  for (const auto& [name, entry] : state_->entries) {
    state_->gather(name, {{0, state_->num_elements(entry)}}, [](size_t, int64_t, int64_t, int64_t) {});
  }
}

const Json& TensorStore::state() const {
  return state_->state;
}

const std::vector<StoredTensor>& TensorStore::tensors() const {
  return state_->tensors;
}

bool TensorStore::contains(const std::string& tensor) const {
  return state_->entries.contains(tensor);
}

void TensorStore::read(const std::string& tensor, const std::vector<StoredRun>& runs, Tensor& out) const {
  const State::Entry& entry = state_->entry(tensor);
  const at::ScalarType dtype = state_->tensors[entry.tensor].dtype;
  int64_t wanted = 0;
  for (const StoredRun& run : runs) wanted += run.size;
  HANOK_REQUIRE(
      out.defined() && out.scalar_type() == dtype && out.is_cpu() && out.is_contiguous() && out.numel() == wanted,
      kShape)
      << "output for " << shown(tensor) << ": got "
      << (out.defined() ? concat(c10::toString(out.scalar_type()), " ", out.sizes(), " on ", out.device().str())
                        : "none")
      << ", expected " << wanted << " elements of " << c10::toString(dtype) << ", contiguous on the host; "
      << state_->directory << "; allocate it from the runs";
  const auto width = static_cast<int64_t>(c10::elementSize(dtype));
  struct Source {
    std::string_view bytes;
    int64_t begin = 0, end = 0;  // of it, what was read
  };
  std::vector<Source> sources(entry.pieces.size());
  const auto shard_of = [&](size_t piece) -> const SafetensorsFile& {
    return state_->shards[state_->pieces[entry.pieces[piece]].shard];
  };
  auto* to_bytes = static_cast<char*>(out.mutable_data_ptr());
  state_->gather(tensor, runs, [&](size_t piece, int64_t from, int64_t to, int64_t size) {
    Source& source = sources[piece];
    if (source.end == 0) source = {shard_of(piece).bytes(tensor), from * width, from * width};
    source.begin = std::min(source.begin, from * width);
    source.end = std::max(source.end, (from + size) * width);
    std::memcpy(to_bytes + to * width, source.bytes.data() + from * width, static_cast<size_t>(size * width));
  });
  for (size_t i = 0; i < sources.size(); ++i) {
    const Source& source = sources[i];
    if (source.end > source.begin) shard_of(i).forget(tensor, source.begin, source.end - source.begin);
  }
}

}  // namespace hanok
