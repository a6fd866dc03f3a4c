#include "dataio/import/record.h"

#include <filesystem>
#include <map>

#include "base/error.h"
#include "dataio/import/chat_jsonl.h"
#include "dataio/import/vqa_csv.h"

namespace hanok {

DatasetKind dataset_kind(const std::string& name, const DatasetConfig& dataset) {
  static const std::map<std::string, DatasetKind> kByName = {
      {"vqa_csv", DatasetKind::kVqaCsv}, {"chat_jsonl", DatasetKind::kChatJsonl}, {"packed", DatasetKind::kPacked}};
  static const std::map<std::string, DatasetKind> kByExtension = {{".csv", DatasetKind::kVqaCsv},
                                                                  {".jsonl", DatasetKind::kChatJsonl},
                                                                  {".ndjson", DatasetKind::kChatJsonl},
                                                                  {".h5", DatasetKind::kPacked},
                                                                  {".hdf5", DatasetKind::kPacked}};
  HANOK_REQUIRE(!dataset.path.empty(), kConfig) << "data.sets." << name << ".path: got nothing, expected a file";
  if (const auto it = kByName.find(dataset.kind); it != kByName.end()) return it->second;
  const std::string extension = std::filesystem::path(dataset.path).extension().string();
  const auto it = kByExtension.find(extension);
  HANOK_REQUIRE(it != kByExtension.end(), kConfig)
      << "data.sets." << name << ".path: got " << dataset.path << ", expected a name that ends in .csv, .jsonl or .h5; "
      << "set data.sets." << name << ".kind to vqa_csv, chat_jsonl or packed";
  return it->second;
}

std::unique_ptr<RecordSource> open_records(const std::string& name, const DatasetConfig& dataset) {
  switch (dataset_kind(name, dataset)) {
    case DatasetKind::kVqaCsv: return std::make_unique<VqaCsvSource>(name, dataset);
    case DatasetKind::kChatJsonl: return std::make_unique<ChatJsonlSource>(name, dataset);
    case DatasetKind::kPacked: break;
  }
  HANOK_FAIL(kConfig) << "data.sets." << name << ": got a packed file, expected a CSV or JSONL to pack";
}

}  // namespace hanok
