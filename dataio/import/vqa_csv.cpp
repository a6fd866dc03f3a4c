#include "dataio/import/vqa_csv.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "base/error.h"
#include "dataio/text/unicode.h"

namespace hanok {
namespace {

constexpr std::array<const char*, 8> kColumns = {"id", "path", "question", "a", "b", "c", "d", "answer"};
enum Column { kId, kPath, kQuestion, kFirstChoice, kAnswer = 7 };
constexpr int kMaxChoices = 4;
constexpr size_t kMaxRowBytes = 16 << 20, kMaxFields = 4096;

std::string trimmed(const std::string& text) {
  constexpr const char* kBlank = " \t\r\n\f\v";
  const size_t begin = text.find_first_not_of(kBlank);
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(kBlank) - begin + 1);
}

std::string lower(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return text;
}

/// Value of a placeholder's name in a prompt, or nothing if it is not one.
const std::string* placeholder(std::string_view name,
                               const std::string& question,
                               const std::vector<std::string>& choices) {
  static const std::string kAbsent;
  if (name == "question") return &question;
  if (name.size() != 1 || name[0] < 'a' || name[0] >= 'a' + kMaxChoices) return nullptr;
  const auto choice = static_cast<size_t>(name[0] - 'a');
  return choice < choices.size() ? &choices[choice] : &kAbsent;
}

struct FilledLine {
  std::string text;
  bool lacks_all = false;  // it has placeholders and every one stands for an absent choice
};

FilledLine filled(std::string_view line, const std::string& question, const std::vector<std::string>& choices) {
  FilledLine out;
  bool has_any = false, has_value = false;
  while (!line.empty()) {
    const size_t close = line[0] == '{' ? line.find('}') : std::string_view::npos;
    const std::string* value = nullptr;
    if (close != std::string_view::npos) value = placeholder(line.substr(1, close - 1), question, choices);
    if (value) {
      out.text += *value;
      has_any = true;
      has_value = has_value || !value->empty();
      line.remove_prefix(close + 1);
    } else {
      out.text += line[0];
      line.remove_prefix(1);
    }
  }
  out.lacks_all = has_any && !has_value;
  return out;
}

}  // namespace

const char* const kVqaPrompt =
    "{question}\na. {a}\nb. {b}\nc. {c}\nd. {d}\nAnswer with the letter of the right choice.";

void CsvReader::append(std::string& field, int byte, const Row& row) {
  HANOK_REQUIRE(row_bytes_++ < kMaxRowBytes, kData)
      << "CSV row: got more than " << (kMaxRowBytes >> 20) << " MB, expected a short text in each field; "
      << file_.path() << ", row " << row.number << " (line " << row.line << "), column " << row.fields.size()
      << "; close its quotation mark";
  field += static_cast<char>(byte);
}

/// Reads one field with the separator behind it; true if the row goes on.
bool CsvReader::read_field(Row& row) {
  HANOK_REQUIRE(row.fields.size() < kMaxFields, kData)
      << "CSV row: got more than " << kMaxFields << " fields, expected a table of fewer columns; " << file_.path()
      << ", row " << row.number << " (line " << row.line << "); write it with the columns that are needed";
  std::string& field = row.fields.emplace_back();
  bool is_quoted = false;
  for (bool is_open = false;;) {
    const int byte = file_.get();
    if (byte == '\n' || (byte == '\r' && file_.peek() != '\n')) ++line_;
    if (byte == SourceFile::kEnd) {
      if (is_open) row.problem = "a quotation mark that is never closed";
      return false;
    }
    if (is_open) {
      if (byte != '"') {
        append(field, byte, row);
      } else if (file_.peek() == '"') {
        append(field, file_.get(), row);
      } else {
        is_open = false;
      }
    } else if (byte == ',') {
      return true;
    } else if (byte == '\n') {
      return false;
    } else if (byte == '\r') {
      if (file_.peek() != '\n') return false;
    } else if (byte == '"' && field.empty() && !is_quoted) {
      is_open = is_quoted = true;
    } else {
      if (is_quoted) row.problem = "text behind a closing quotation mark";
      append(field, byte, row);
    }
  }
}

bool CsvReader::next(Row& row) {
  while (file_.peek() != SourceFile::kEnd) {
    row = Row{.number = ++num_rows_, .line = line_};
    row_bytes_ = 0;
    while (read_field(row)) {
    }
    if (row.fields.size() > 1 || !row.fields[0].empty() || !row.problem.empty()) return true;
  }
  return false;
}

VqaCsvSource::VqaCsvSource(std::string name, const DatasetConfig& dataset)
    : name_(std::move(name)),
      prompt_(vqa_prompt(name_, dataset)),
      file_(dataset.path),
      csv_(file_),
      decoder_(dataset.encoding) {
  read_header();
}

void VqaCsvSource::read_header() {
  CsvReader::Row row;
  HANOK_REQUIRE(csv_.next(row), kData) << "CSV: got an empty file, expected a header " << kColumns << "; "
                                       << file_.path();
  std::vector<std::string> found, missing;
  for (const std::string& field : row.fields) {
    const std::optional<std::string> text = decoder_.decode(field);
    HANOK_REQUIRE(text.has_value(), kData)
        << "CSV header: got bytes, expected text; " << file_.path() << ", row 1, column " << found.size() + 1
        << "; they are " << decoder_.advice(name_, field);
    found.push_back(lower(trimmed(*text)));
  }
  num_columns_ = found.size();
  for (const char* column : kColumns) {
    const auto place = std::find(found.begin(), found.end(), column);
    places_.push_back(place == found.end() ? -1 : static_cast<int>(place - found.begin()));
    if (place == found.end() && std::string_view(column) != "answer") missing.push_back(column);
    HANOK_REQUIRE(std::count(found.begin(), found.end(), column) < 2, kData)
        << "CSV column " << column << ": got it more than once, expected once; " << file_.path() << ", columns "
        << found;
  }
  HANOK_REQUIRE(missing.empty(), kData) << "CSV columns: got " << found << ", expected " << kColumns
                                        << " (answer may be absent), separated by commas; " << file_.path() << "; add "
                                        << missing;
}

/// The field as UTF-8 without surrounding blanks; a field of another encoding makes the record wrong.
bool VqaCsvSource::read_text(Record& record, const CsvReader::Row& row, int column, std::string& text) {
  text.clear();
  if (places_[column] < 0 || record.is_wrong()) return false;
  const std::string& bytes = row.fields[places_[column]];
  const std::optional<std::string> decoded = decoder_.decode(bytes);
  if (!decoded) {
    record.reject(
        "encoding",
        concat(
            "row ", row.number, ", column ", kColumns[column], ": got bytes that are ", decoder_.advice(name_, bytes)));
    return false;
  }
  text = trimmed(*decoded);
  return !text.empty();
}

void VqaCsvSource::read_choices(Record& record, const CsvReader::Row& row) {
  const std::string where = concat("row ", row.number, ", ");
  for (int i = 0; i < kMaxChoices; ++i) {
    std::string choice;
    if (!read_text(record, row, kFirstChoice + i, choice)) continue;
    if (static_cast<int>(record.choices.size()) != i) {
      record.reject("choice_missing",
                    concat(where, "column ", kColumns[kFirstChoice + i], ": got a choice behind an empty one"));
    }
    record.choices.push_back(std::move(choice));
  }
  if (!record.is_wrong() && record.choices.size() < 2) {
    record.reject("choice_missing", concat(where, "got ", record.choices.size(), " choices, expected 2 to 4"));
  }
  std::string answer;
  if (!read_text(record, row, kAnswer, answer)) return;
  record.answer = answer.size() == 1 ? lower(answer)[0] - 'a' : -1;
  if (record.answer < 0 || record.answer >= static_cast<int>(record.choices.size())) {
    record.answer = -1;
    record.reject("answer_invalid",
                  concat(where,
                         "column answer: got \"",
                         unicode::beginning(answer, 40),
                         "\", expected a letter from a to ",
                         choice_letter(static_cast<int>(record.choices.size()) - 1)));
  }
}

bool VqaCsvSource::next(Record& record) {
  CsvReader::Row row;
  if (!csv_.next(row)) return false;
  record = Record{.number = row.number};
  const std::string where = concat("row ", row.number, " (line ", row.line, "): ");
  if (!row.problem.empty()) {
    record.reject("csv_quotes", where + "got " + row.problem);
  } else if (row.fields.size() != num_columns_) {
    record.reject("csv_columns",
                  concat(where, "got ", row.fields.size(), " fields, expected ", num_columns_, " as in the header"));
  }
  std::string path;
  if (!record.is_wrong()) {
    read_text(record, row, kId, record.id);
    read_text(record, row, kPath, path);
    read_text(record, row, kQuestion, record.question);
    read_choices(record, row);
  }
  if (record.is_wrong()) return true;
  for (const auto& [text, column] : {std::pair(record.id, kId), {path, kPath}, {record.question, kQuestion}}) {
    if (!text.empty()) continue;
    record.reject(std::string(kColumns[column]) + "_empty",
                  concat("row ", row.number, ", column ", kColumns[column], ": got nothing, expected a text"));
    return true;
  }
  record.messages.push_back(vqa_question(path, record.question, record.choices, prompt_));
  if (record.answer >= 0) {
    record.messages.push_back(
        {"assistant", {{.kind = ContentPart::Kind::kText, .text = choice_letter(record.answer)}}});
  }
  return true;
}

std::string vqa_prompt(const std::string& name, const DatasetConfig& dataset) {
  if (dataset.prompt.empty()) return kVqaPrompt;
  HANOK_REQUIRE(dataset.prompt.find("{question}") != std::string::npos, kConfig)
      << "data.sets." << name << ".prompt: got no {question}, expected it; the choices are {a} {b} {c} {d}";
  return dataset.prompt;
}

Message vqa_question(const std::string& path,
                     const std::string& question,
                     const std::vector<std::string>& choices,
                     const std::string& prompt) {
  std::string text;
  bool is_first = true;
  for (size_t begin = 0; begin <= prompt.size();) {
    const size_t end = std::min(prompt.find('\n', begin), prompt.size());
    const FilledLine line = filled(std::string_view(prompt).substr(begin, end - begin), question, choices);
    if (!line.lacks_all) {
      text += (is_first ? "" : "\n") + line.text;
      is_first = false;
    }
    begin = end + 1;
  }
  return {"user",
          {{.kind = ContentPart::Kind::kImage, .text = path}, {.kind = ContentPart::Kind::kText, .text = text}}};
}

std::string choice_letter(int shown) {
  return std::string(1, static_cast<char>('a' + shown));
}

}  // namespace hanok
