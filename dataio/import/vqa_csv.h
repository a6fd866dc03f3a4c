// The VQA table: id,path,question,a,b,c,d[,answer]. One picture, one question, two to four choices.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dataio/import/record.h"
#include "dataio/import/source_file.h"

namespace hanok {

/// Rows of RFC 4180: quoted newlines, doubled quotes, CRLF. Streaming.
class CsvReader {
 public:
  explicit CsvReader(SourceFile& file) : file_(file) {}
  struct Row {
    int64_t number = 0, line = 0;  // row as a spreadsheet counts it; physical line it begins on; both from 1
    std::vector<std::string> fields;
    std::string problem;  // what is wrong with its quotes; empty: nothing
  };
  /// False at the end. Empty lines count as rows but are not returned.
  /// errors: kData for a row beyond 16 MB, which is what a quote that nobody closed looks like, or 4096 fields
  bool next(Row& row);

 private:
  bool read_field(Row& row);
  void append(std::string& field, int byte, const Row& row);
  SourceFile& file_;
  int64_t num_rows_ = 0, line_ = 1;
  size_t row_bytes_ = 0;
};

/// Columns are found by name, in any order; others are ignored. A row without answer is one to predict.
/// errors: kData naming the columns that are missing and those found
class VqaCsvSource : public RecordSource {
 public:
  VqaCsvSource(std::string name, const DatasetConfig& dataset);
  bool next(Record& record) override;
  uint64_t bytes_hash() const override { return file_.bytes_hash(); }

 private:
  void read_header();
  bool read_text(Record& record, const CsvReader::Row& row, int column, std::string& text);
  void read_choices(Record& record, const CsvReader::Row& row);
  std::string name_, prompt_;
  SourceFile file_;
  CsvReader csv_;
  TextDecoder decoder_;
  size_t num_columns_ = 0;
  std::vector<int> places_;  // of kColumns in a row; -1: absent
};

/// The built-in question text. A line whose placeholders are all choices that the row lacks is left out.
extern const char* const kVqaPrompt;
/// The prompt of a dataset, checked. errors: kConfig if it lacks {question}
std::string vqa_prompt(const std::string& name, const DatasetConfig& dataset);
/// Picture and question of a row, the choices in the order given.
Message vqa_question(const std::string& path,
                     const std::string& question,
                     const std::vector<std::string>& choices,
                     const std::string& prompt);
/// What the assistant answers for the shown position: "a", "b", ...
std::string choice_letter(int shown);

}  // namespace hanok
