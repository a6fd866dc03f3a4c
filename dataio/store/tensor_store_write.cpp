// The writing side of a tensor store: shards by every rank, then the commit by one.
#include <fcntl.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>

#include "base/clock.h"
#include "base/error.h"
#include "dataio/safetensors.h"
#include "dataio/store/store_format.h"
#include "dataio/store/strict_json.h"
#include "dataio/store/strided_runs.h"
#include "dataio/tensor_store.h"

namespace hanok {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

Json runs_json(const std::vector<StridedRun>& runs) {
  Json list = Json::array();
  for (const StridedRun& run : runs) list.push_back({run.begin, run.size, run.stride, run.count});
  return list;
}

// Only this save's files may go with the store: an interrupted save of more ranks can have left others.
void remove_strangers(const std::string& directory, int num_shards) {
  std::set<std::string> ours;
  for (int rank = 0; rank < num_shards; ++rank) ours.insert({store_data_name(rank), store_index_name(rank)});
  std::error_code error;
  std::vector<fs::path> strangers;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (!ours.contains(it->path().filename().string())) strangers.push_back(it->path());
  }
  require_success(error, "list folder", directory);
  for (const fs::path& path : strangers) {
    fs::remove_all(path, error);
    require_success(error, "remove", path.string());
  }
}

std::string parent_of(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

}  // namespace

void write_store_shard(const std::string& directory, int rank, const std::vector<StoredPiece>& pieces) {
  const std::string folder = unfinished_store(directory);
  const std::string data_path = concat(folder, "/", store_data_name(rank));
  std::vector<TensorPlan> plans;
  std::map<std::string, const StoredPiece*> by_name;
  std::map<std::string, std::vector<StridedRun>> runs;
  for (const StoredPiece& piece : pieces) {
    int64_t elements = 0;
    for (const StoredRun& run : piece.runs) elements += run.size;
    const Tensor& values = piece.values;
    HANOK_REQUIRE(values.defined() && values.dim() == 1 && values.is_contiguous() && values.numel() == elements, kShape)
        << "piece of " << shown(piece.tensor) << ": got values "
        << (values.defined() ? concat(values.sizes()) : "undefined") << ", expected [" << elements
        << "] as its runs say, contiguous; " << data_path << "; cut values and runs from the same list";
    runs[piece.tensor] = compress_runs(piece.runs);
    by_name[piece.tensor] = &piece;
    plans.push_back({piece.tensor, values.scalar_type(), {elements}});
  }
  // Wide dtypes first: every view of the file is then aligned.
  std::stable_sort(plans.begin(), plans.end(), [](const TensorPlan& a, const TensorPlan& b) {
    return c10::elementSize(a.dtype) > c10::elementSize(b.dtype);
  });
  std::error_code error;
  fs::create_directories(folder, error);
  require_success(error, "create folder", folder);
  // Hashed from memory, not from the file: what the disk made of it shows at verify().
  std::map<std::string, std::string> hashes;
  write_safetensors(data_path, plans, {}, [&](const std::string& name) {
    const Tensor values = by_name.at(name)->values.cpu();
    hashes[name] = xxh3_text(values.const_data_ptr(), values.nbytes());
    return values;
  });

  const SafetensorsFile written(data_path);
  Json index = {{"schema_version", TensorStore::kSchemaVersion},
                {"rank", rank},
                {"header_xxh3", xxh3_text(written.header_bytes())}};
  Json& list = index["pieces"] = Json::array();
  for (const TensorPlan& plan : plans) {
    list.push_back({{"tensor", plan.name},
                    {"runs", runs_json(runs.at(plan.name))},
                    {"offset", written.header().tensors.at(plan.name).begin},
                    {"xxh3", hashes.at(plan.name)}});
  }
  const std::string index_path = concat(folder, "/", store_index_name(rank));
  write_file_atomically(index_path, strict_json_text(index, index_path) + "\n");
}

void commit_store(const std::string& directory,
                  int num_shards,
                  const std::vector<StoredTensor>& tensors,
                  const Json& state) {
  const std::string folder = unfinished_store(directory);
  const std::string manifest_path = concat(folder, "/", kStoreManifest);
  Json manifest = {{"schema_version", TensorStore::kSchemaVersion}, {"created", utc_now()}, {"state", state}};
  Json& list = manifest["tensors"] = Json::array();
  for (const StoredTensor& tensor : tensors) {
    list.push_back({{"name", tensor.name}, {"dtype", std::string(dtype_name(tensor.dtype))}, {"shape", tensor.shape}});
  }
  Json& shards = manifest["shards"] = Json::array();
  for (int rank = 0; rank < num_shards; ++rank) {
    const std::string data_path = concat(folder, "/", store_data_name(rank));
    const std::string index = read_file(concat(folder, "/", store_index_name(rank)));
    std::error_code error;
    const auto data_bytes = fs::file_size(data_path, error);
    require_success(error, "size of shard", data_path);
    shards.push_back({{"index_bytes", index.size()}, {"index_xxh3", xxh3_text(index)}, {"data_bytes", data_bytes}});
  }
  remove_strangers(folder, num_shards);
  write_file_atomically(manifest_path, sealed_text(manifest, manifest_path));
  sync_path(folder);
  // Read back what every rank wrote: a store that no layout can load must not take the place of one that can.
  TensorStore(folder).check_complete();
  rename_over(folder, folder.substr(0, folder.size() - std::string_view(".tmp").size()));
  const std::string parent = parent_of(folder);
  sync_path(parent);
  sync_path(parent_of(parent));  // the first save of a run has made the parent too
}

void remove_unfinished_stores(const std::string& parent) {
  std::error_code error;
  if (!fs::exists(parent, error)) return;
  std::vector<fs::path> leftovers;
  for (fs::directory_iterator it(parent, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".tmp" && it->is_directory(error) && !it->is_symlink(error))
      leftovers.push_back(it->path());
  }
  require_success(error, "list folder", parent);
  for (const fs::path& path : leftovers) {
    fs::remove_all(path, error);
    require_success(error, "remove", path.string());
  }
}

}  // namespace hanok
