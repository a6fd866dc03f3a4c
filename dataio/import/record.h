// What an importer makes of one record of a user's file, before pictures are opened or anything is tokenised.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "configs/schema/config.h"
#include "dataio/chat.h"

namespace hanok {

/// A record that cannot be used, with the reason it is counted under. Ends the record, not the run.
struct WrongRecord : Error {
  WrongRecord(std::string why, std::string how) : Error(ErrorKind::kData, std::move(how)), reason(std::move(why)) {}
  std::string reason;
};

struct Record {
  int64_t number = 0;  // CSV: row as a spreadsheet counts it, the header being row 1; JSONL: line, from 1
  std::string id;
  std::vector<Message> messages;  // paths as written in the file
  std::vector<double> video_fps;  // one per video of the messages; 0: not given
  std::string question;           // of a multiple choice
  std::vector<std::string> choices;
  int answer = -1;  // index into choices; -1: not given

  std::string reason, detail;  // why the record cannot be used; empty: it can
  void reject(std::string why, std::string how) {
    reason = std::move(why);
    detail = std::move(how);
  }
  bool is_wrong() const { return !reason.empty(); }
};

/// Records in the order of the file. Memory is one record and one buffer, whatever the size of the file.
class RecordSource {
 public:
  virtual ~RecordSource() = default;
  /// False at the end. A record that cannot be used is returned as such (Record::reason).
  /// errors: kData for what makes the whole file unreadable; kIo
  virtual bool next(Record& record) = 0;
  /// xxh3 of the bytes read so far; at the end, of the file.
  virtual uint64_t bytes_hash() const = 0;
};

enum class DatasetKind { kVqaCsv, kChatJsonl, kPacked };
/// errors: kConfig if `kind: auto` meets an extension that it does not know; `name` is the key under data.sets
DatasetKind dataset_kind(const std::string& name, const DatasetConfig& dataset);
/// errors: kConfig for kind packed or a prompt without {question}; kData, kIo as next()
std::unique_ptr<RecordSource> open_records(const std::string& name, const DatasetConfig& dataset);

}  // namespace hanok
