// An unfinished pack: finished blocks of samples as small files of their own, so that whatever ends the process loses
// one block at most. (A killed writer may leave an HDF5 file that cannot be opened; a closed and renamed one survives.)
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "dataio/pack/columns.h"

namespace hanok {

/// A record that was skipped. As text: one JSON object.
struct BadRecord {
  int64_t number = 0;
  std::string id, reason, detail;
  std::string json_line() const;
};

std::vector<BadRecord> parse_bad_lines(const std::string& lines);
/// The skipped records that a part or a finished pack lists.
std::string read_bad_lines(const H5File& file);

/// Consecutive records of the source: what became of them.
struct PackBlock {
  PackColumns columns;
  std::string bad_lines;  // of the skipped ones
  int64_t num_records = 0;
  int64_t num_bytes() const { return columns.num_bytes() + static_cast<int64_t>(bad_lines.size()); }
};

class PackParts {
 public:
  /// Finds the blocks of an earlier, interrupted pack in `folder`; what does not continue them is removed. errors: kIo
  PackParts(std::string folder, std::string key);
  int64_t num_records() const { return num_records_; }
  TableRows rows() const;  // of all blocks
  /// Skipped records of all blocks, in order.
  std::string bad_lines() const;
  /// Durable when it returns. errors: kIo
  void add(const PackBlock& block);
  /// All blocks as one file, with the attributes given. errors: kIo also if a block was damaged on disk: it is removed,
  /// and a second call of pack goes on from there
  void merge(const std::string& path,
             const std::map<std::string, std::string>& texts,
             const std::map<std::string, int64_t>& numbers);
  void remove();

 private:
  std::string part_path(size_t number) const;
  PackBlock read_part(size_t number) const;
  void remove_from(size_t number);
  std::string folder_, key_;
  int64_t num_records_ = 0;
  std::vector<TableRows> rows_;  // of each block
};

}  // namespace hanok
