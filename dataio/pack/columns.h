// The tables of a packed file in memory: samples are appended to them, and blocks of them are written and read.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "dataio/hash.h"
#include "dataio/pack/format.h"
#include "dataio/pack/h5_file.h"
#include "dataio/sample.h"

namespace hanok {

struct PackColumns {
  std::vector<int64_t> sample_ends;     // [N, kNumSampleEnds]
  std::vector<int32_t> sample_facts;    // [N, kNumSampleFacts]
  std::vector<int64_t> sample_records;  // [N]: number of the record in the source
  std::vector<uint64_t> sample_xxh3;    // [N]: of everything that belongs to the sample
  std::vector<int32_t> item_facts;      // [I, kNumItemFacts]
  std::vector<int64_t> item_ends;       // [I, kNumItemEnds]
  std::vector<int64_t> frame_ends;      // [F]: running total of bytes
  std::vector<int32_t> tokens, labels;  // labels: [., 2] begin and end in the sample's tokens
  std::vector<int32_t> places;          // first placeholder token of each temporal patch
  std::vector<uint8_t> frame_bytes, id_bytes, choice_bytes;

  int64_t num_samples() const { return static_cast<int64_t>(sample_records.size()); }
  int64_t num_bytes() const;
  void append(const Sample& sample, int64_t record);
  void clear() { *this = {}; }
};

/// visit(table, column, width, is_index): every table once, those that Dataset's open verifies first.
template <class Columns, class Visitor>
void for_each_table(Columns& c, Visitor&& visit) {
  visit("samples/ends", c.sample_ends, format::kNumSampleEnds, true);
  visit("samples/facts", c.sample_facts, format::kNumSampleFacts, true);
  visit("samples/records", c.sample_records, 1, true);
  visit("samples/xxh3", c.sample_xxh3, 1, true);
  visit("vision/items", c.item_facts, format::kNumItemFacts, true);
  visit("vision/ends", c.item_ends, format::kNumItemEnds, true);
  visit("vision/frame_ends", c.frame_ends, 1, true);
  visit("tokens", c.tokens, 1, false);
  visit("labels", c.labels, 2, false);
  visit("vision/places", c.places, 1, false);
  visit("vision/frame_bytes", c.frame_bytes, 1, false);
  visit("ids", c.id_bytes, 1, false);
  visit("choices", c.choice_bytes, 1, false);
}
constexpr int kNumTables = 13;

/// Rows of every table, in the order of for_each_table.
using TableRows = std::array<int64_t, kNumTables>;
TableRows rows_of(const PackColumns& columns);
TableRows rows_of(const H5File& file);
TableRows operator+(TableRows a, const TableRows& b);
int64_t rows_in(const TableRows& rows, std::string_view table);

/// xxh3 of the index tables, fed block by block in the order of samples.
class IndexHash {
 public:
  void add(const PackColumns& columns);
  std::string text() const;

 private:
  std::array<Hash64, kNumTables> hashes_;
};

void create_tables(H5File& file, const TableRows& rows);
/// Turns the running totals of a block (which begin at 0) into those of a file that already holds `before`.
void shift(PackColumns& columns, const TableRows& before);
void write_tables(H5File& file, const PackColumns& columns, const TableRows& before);
/// A whole file. errors: kData
PackColumns read_tables(const H5File& file);
/// The hash of index tables as they are in a file, read in stretches.
IndexHash read_index_hash(const H5File& file);

/// Sample `index` of a file, with its checksum verified. errors: kData naming the sample and both checksums
Sample read_sample(const H5File& file, int64_t index);
std::string read_sample_id(const H5File& file, int64_t index);
uint64_t sample_hash(const Sample& sample);

}  // namespace hanok
