#include "dataio/pack.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "dataio/dataset.h"
#include "dataio/file_io.h"
#include "dataio/file_lock.h"
#include "dataio/import/record.h"
#include "dataio/ordered_workers.h"
#include "dataio/pack/encode.h"
#include "dataio/pack/key.h"
#include "dataio/pack/parts.h"
#include "dataio/text/unicode.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;
using ReportProgress = std::function<void(const PackProgress&)>;

// A block is written when it holds this much, or after this long: what an interruption can cost.
constexpr int64_t kBlockRecords = 2048, kBlockBytes = 64 << 20;
constexpr double kBlockSeconds = 20;
constexpr int64_t kRecordsAheadPerThread = 4;

std::string bad_list_of(const std::string& file) {
  return fs::path(file).replace_extension(".bad.jsonl").string();
}

std::string counts_text(const BadSamples& bad) {
  std::string text;
  for (const auto& [reason, count] : bad.by_reason) text += concat(text.empty() ? "" : ", ", reason, ": ", count);
  return text;
}

/// The skipped records of a pack, and when they are too many.
class BadLedger {
 public:
  BadLedger(const std::string& name, const DatasetConfig& dataset, const DataConfig& data, int64_t num_records)
      : name_(name), path_(dataset.path), data_(data), num_records_(num_records) {}
  void add(const BadRecord& bad) {
    ++counts_.by_reason[bad.reason];
    if (first_.size() < 3)
      first_.push_back(bad.detail.size() > 600 ? concat(unicode::beginning(bad.detail, 600), "...") : bad.detail);
    HANOK_REQUIRE(data_.on_bad_sample != "fail", kData)
        << "data.sets." << name_ << ": got a wrong record (" << bad.reason << "): " << bad.detail << "; " << path_
        << "; correct it, or set data.on_bad_sample: skip";
  }
  bool is_beyond_share() const {
    return static_cast<double>(counts_.total()) > data_.max_bad_share * static_cast<double>(num_records_);
  }
  void check(const std::string& list, int64_t num_seen) const {
    const int64_t num_bad = counts_.total();
    HANOK_REQUIRE(num_bad < num_records_, kData)
        << "data.sets." << name_ << ": got no usable record of " << num_records_ << " (" << counts_text(counts_)
        << "), expected some; " << path_ << "; first: " << first_ << (list.empty() ? "" : "; all are listed in ")
        << list;
    HANOK_REQUIRE(!is_beyond_share(), kData)
        << "data.sets." << name_ << ": got " << num_bad << " wrong records of " << num_seen << " ("
        << counts_text(counts_) << "), expected at most data.max_bad_share = " << data_.max_bad_share << " of "
        << num_records_ << "; " << path_ << "; first: " << first_ << (list.empty() ? "" : "; all are listed in ")
        << list << "; correct them, or raise data.max_bad_share";
  }
  const BadSamples& counts() const { return counts_; }

 private:
  std::string name_, path_;
  const DataConfig& data_;
  int64_t num_records_;
  BadSamples counts_;
  std::vector<std::string> first_;
};

std::string write_bad_list(const std::string& file, const std::string& lines) {
  if (lines.empty()) return "";
  write_file_atomically(bad_list_of(file), lines);
  return bad_list_of(file);
}

struct Finished {
  PackReport report;
  std::vector<BadRecord> bad;
};

/// The file of an earlier call. errors: kData if it is damaged
Finished read_finished(const std::string& file) {
  const Dataset dataset(file);
  Finished found{.report = {.file = file, .was_cached = true, .num_samples = dataset.size()}};
  const std::string report = dataset.provenance("report");
  try {
    const auto facts = nlohmann::json::parse(report);
    found.report.num_records = facts.at("records");
    found.report.num_images = facts.at("images");
    found.report.num_tokens = facts.at("tokens");
  } catch (const nlohmann::json::exception&) {
    HANOK_FAIL(kData) << "packed file: got \"" << unicode::beginning(report, 80) << "\", expected counts as JSON; "
                      << file << ", attribute report; delete it and pack the data again";
  }
  const std::string lines = read_bad_lines(H5File::open(file));
  found.bad = parse_bad_lines(lines);
  for (const BadRecord& bad : found.bad) ++found.report.bad.by_reason[bad.reason];
  if (!lines.empty()) {
    found.report.bad_list = bad_list_of(file);
    if (!fs::exists(found.report.bad_list)) write_bad_list(file, lines);
  }
  return found;
}

struct Outcome {
  int64_t number = 0;
  std::optional<Sample> sample;
  BadRecord bad;
};

/// Runs in a worker. What is wrong with one record becomes its outcome; anything else ends the pack.
Outcome encoded(const Record& record, const EncodeOptions& options, const char* row_or_line) {
  Outcome outcome{.number = record.number};
  if (record.is_wrong()) {
    outcome.bad = {record.number, record.id, record.reason, record.detail};
    return outcome;
  }
  try {
    outcome.sample = encode_record(record, options);
  } catch (const WrongRecord& wrong) {
    const std::string detail = concat(row_or_line, " ", record.number, ": ", wrong.what());
    outcome.bad = {record.number, record.id, wrong.reason, detail};
  }
  return outcome;
}

/// Packs what the blocks of earlier calls do not hold yet.
void pack_rest(const PackPlan& plan,
               const DatasetConfig& dataset,
               const DataConfig& data,
               const SampleEncoder& encoder,
               PackParts& parts,
               BadLedger& ledger,
               const ReportProgress& progress) {
  const auto source = open_records(plan.name, dataset);
  int64_t num_done = 0;
  for (Record skipped; num_done < parts.num_records() && source->next(skipped);) ++num_done;
  const EncodeOptions options{.encoder = encoder,
                              .image_root = plan.image_root,
                              .limits = {.max_pixels = data.max_image_pixels},
                              .store_resized = data.store_images == "resized"};
  const char* row_or_line = dataset_kind(plan.name, dataset) == DatasetKind::kVqaCsv ? "row" : "line";
  OrderedWorkers<Record, Outcome> workers(
      data.reader_threads,
      kRecordsAheadPerThread * data.reader_threads,
      [&] {
        std::optional<Record> record(std::in_place);
        if (!source->next(*record)) record.reset();
        return record;
      },
      [&](Record& record) { return encoded(record, options, row_or_line); });

  PackBlock block;
  double block_begin = now_s();
  const auto flush = [&] {
    if (block.num_records > 0) parts.add(block);
    block = {};
    block_begin = now_s();
  };
  while (std::optional<Outcome> outcome = workers.take()) {
    if (outcome->sample) {
      block.columns.append(*outcome->sample, outcome->number);
    } else {
      block.bad_lines += outcome->bad.json_line();
      ledger.add(outcome->bad);
    }
    ++block.num_records;
    progress({++num_done, plan.num_records});
    if (ledger.is_beyond_share()) {
      ledger.check(write_bad_list(plan.file, parts.bad_lines() + block.bad_lines), num_done);
    }
    if (block.num_records >= kBlockRecords || block.num_bytes() >= kBlockBytes ||
        now_s() - block_begin >= kBlockSeconds) {
      flush();
    }
  }
  flush();
  HANOK_REQUIRE(num_done == plan.num_records && source->bytes_hash() == plan.source_xxh3, kData)
      << "data.sets." << plan.name << ".path: got other bytes than a moment ago, expected a file that stays; "
      << dataset.path << "; start again when it is complete";
}

/// Blocks of packs of the same dataset that nobody goes on with: their source has changed since.
void remove_abandoned(const PackPlan& plan) {
  const fs::path file(plan.file);
  const std::string stem = file.stem().string(), prefix = stem.substr(0, stem.size() - plan.key.size());
  std::vector<fs::path> doomed;
  for (const auto& entry : fs::directory_iterator(file.parent_path())) {
    const std::string name = entry.path().filename().string();
    if (entry.path().extension() != ".parts" || entry.path().stem() == stem) continue;
    if (name.size() != stem.size() + 6 || name.compare(0, prefix.size(), prefix) != 0) continue;
    if (!is_unlocked(fs::path(entry.path()).replace_extension(".lock").string())) continue;
    doomed.push_back(entry.path());
    doomed.push_back(fs::path(entry.path()).replace_extension(".h5.partial"));
  }
  std::error_code ignored;
  for (const fs::path& path : doomed) fs::remove_all(path, ignored);
}

PackReport pack_new(const PackPlan& plan,
                    const DatasetConfig& dataset,
                    const DataConfig& data,
                    const SampleEncoder& encoder,
                    const ReportProgress& progress) {
  BadLedger ledger(plan.name, dataset, data, plan.num_records);
  PackParts parts(fs::path(plan.file).replace_extension(".parts").string(), plan.key);
  for (const BadRecord& bad : parse_bad_lines(parts.bad_lines())) ledger.add(bad);
  progress({parts.num_records(), plan.num_records});
  pack_rest(plan, dataset, data, encoder, parts, ledger, progress);

  PackReport report{.file = plan.file, .num_records = plan.num_records, .bad = ledger.counts()};
  report.bad_list = write_bad_list(plan.file, parts.bad_lines());
  ledger.check(report.bad_list, plan.num_records);
  const TableRows rows = parts.rows();
  report.num_samples = rows_in(rows, "samples/records");
  report.num_images = rows_in(rows, "vision/frame_ends");
  report.num_tokens = rows_in(rows, "tokens");
  const nlohmann::json facts = {{"records", report.num_records},
                                {"samples", report.num_samples},
                                {"images", report.num_images},
                                {"tokens", report.num_tokens}};
  std::map<std::string, std::string> texts(plan.keyed.begin(), plan.keyed.end());
  texts["report"] = facts.dump();
  texts["source"] = fs::absolute(dataset.path).lexically_normal().string();
  texts["on_bad_sample"] = data.on_bad_sample;
  texts["program"] = "hanok " HANOK_VERSION;
  parts.merge(plan.file,
              texts,
              {{"source_bytes", static_cast<int64_t>(fs::file_size(dataset.path))},
               {"image_token", encoder.image_token},
               {"video_token", encoder.video_token}});
  parts.remove();
  return report;
}

void make_cache_folder(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  HANOK_REQUIRE(!error, kIo) << "data.cache: got \"" << error.message() << "\", expected to make the folder " << folder
                             << "; choose another with data.cache";
}

/// Takes the file of an earlier call if there is one and it is whole; what it skipped may still be too much for today's
/// policy. errors: kData if it is
bool reuse(
    const PackPlan& plan, const DatasetConfig& dataset, const DataConfig& data, bool has_lock, PackReport& report) {
  std::error_code error;
  const bool is_there = fs::exists(plan.file, error);
  HANOK_REQUIRE(!error, kIo) << "data.cache: got \"" << error.message() << "\", expected a folder that can be used; "
                             << plan.file << "; choose another with data.cache";
  if (!is_there) return false;
  Finished found;
  try {
    found = read_finished(plan.file);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kData) throw;
    if (has_lock) HANOK_LOG(WARNING) << error.what() << "; it is packed again now";
    return false;
  }
  BadLedger ledger(plan.name, dataset, data, found.report.num_records);
  for (const BadRecord& bad : found.bad) ledger.add(bad);
  ledger.check(found.report.bad_list, found.report.num_records);
  report = std::move(found.report);
  return true;
}

/// A file that the user packed earlier: usable only with the tokenizer and the patches it was packed with.
PackReport check_packed(const std::string& name,
                        const DatasetConfig& dataset,
                        const SampleEncoder& encoder,
                        const ReportProgress& progress) {
  const Dataset packed(dataset.path);
  const std::pair<const char*, std::string> facts[] = {
      {"tokenizer", encoder.tokenizer->content_hash()},
      {"placeholders", concat("image ", encoder.image_token, ", video ", encoder.video_token)},
      {"vision_pixels", vision_pixels_text(encoder.vision)}};
  for (const auto& [key, expected] : facts) {
    HANOK_REQUIRE(packed.provenance(key) == expected, kData)
        << "data.sets." << name << ": got a file packed with " << key << " \"" << packed.provenance(key)
        << "\", expected \"" << expected << "\" of this model; " << dataset.path << "; pack the data for this model";
  }
  PackReport report{.file = dataset.path, .was_cached = true};
  report.num_records = report.num_samples = packed.size();
  for (int64_t i = 0; i < packed.size(); ++i) {
    const Sample sample = packed.read(i);
    report.num_tokens += static_cast<int64_t>(sample.tokens.size());
    for (const VisionItem& item : sample.vision) report.num_images += static_cast<int64_t>(item.frames.size());
    progress({i + 1, packed.size()});
  }
  HANOK_REQUIRE(packed.size() > 0, kData) << "data.sets." << name << ": got a packed file without samples, expected "
                                          << "some; " << dataset.path;
  return report;
}

}  // namespace

int64_t BadSamples::total() const {
  int64_t sum = 0;
  for (const auto& [reason, count] : by_reason) sum += count;
  return sum;
}

PackReport pack_dataset(const std::string& name,
                        const DatasetConfig& dataset,
                        const DataConfig& data,
                        const SampleEncoder& encoder,
                        const ReportProgress& progress_or_none) {
  const double start = now_s();
  const ReportProgress progress = progress_or_none ? progress_or_none : [](const PackProgress&) {};
  PackReport report;
  if (dataset_kind(name, dataset) == DatasetKind::kPacked) {
    report = check_packed(name, dataset, encoder, progress);
  } else {
    const PackPlan plan = plan_pack(name, dataset, data, encoder);
    HANOK_REQUIRE(plan.num_records > 0, kData)
        << "data.sets." << name << ": got a file without records, expected some; " << dataset.path
        << "; correct data.sets." << name << ".path";
    // Looked for twice: a finished pack may lie where nothing can be written, and another process may finish it now.
    if (!reuse(plan, dataset, data, /*has_lock=*/false, report)) {
      make_cache_folder(data.cache);
      const FileLock lock(fs::path(plan.file).replace_extension(".lock").string(), "packing data.sets." + name);
      if (!reuse(plan, dataset, data, /*has_lock=*/true, report)) {
        remove_abandoned(plan);
        report = pack_new(plan, dataset, data, encoder, progress);
      }
    }
  }
  report.seconds = now_s() - start;
  return report;
}

}  // namespace hanok
