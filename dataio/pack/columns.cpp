#include "dataio/pack/columns.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace hanok {
namespace {

using namespace format;  // the enumerators that name columns

template <class T>
void extend(std::vector<T>& column, const T* begin, const T* end) {
  column.insert(column.end(), begin, end);
}

int32_t narrow(int64_t value) {
  return static_cast<int32_t>(value);
}

std::string choices_text(const Sample& sample) {
  if (sample.choices.empty()) return "";
  return nlohmann::json{{"question", sample.question}, {"choices", sample.choices}}.dump();
}

std::string text_of(const std::vector<uint8_t>& bytes) {
  return {bytes.begin(), bytes.end()};
}

/// Rows [begin, end) of a table.
template <class T>
std::vector<T> read_rows(const H5File& file, const char* table, int64_t begin, int64_t end, int64_t width = 1) {
  const int64_t rows = file.num_rows(table);
  HANOK_REQUIRE(begin >= 0 && begin <= end && end <= rows && file.num_columns(table) == width, kData)
      << "packed file: got rows [" << begin << ", " << end << ") of " << table << ", expected them in order, of the "
      << rows << " that it has, with " << width << " columns; " << file.path() << "; delete it and pack the data again";
  std::vector<T> values(static_cast<size_t>((end - begin) * width));
  file.read<T>(table, begin, values);
  return values;
}

/// Row `index` of a table of running totals with the row before it: [begin, end) of every column.
template <int kWidth>
std::array<Span, kWidth> read_ends(const H5File& file, const char* table, int64_t index) {
  const int64_t first = std::max<int64_t>(index - 1, 0);
  const auto ends = read_rows<int64_t>(file, table, first, index + 1, kWidth);
  std::array<Span, kWidth> spans;
  for (int c = 0; c < kWidth; ++c) spans[c] = {index == 0 ? 0 : ends[c], ends[ends.size() - kWidth + c]};
  return spans;
}

void read_vision(const H5File& file, const Span& items, Sample& sample) {
  const auto facts = read_rows<int32_t>(file, "vision/items", items.begin, items.end, kNumItemFacts);
  for (int64_t i = items.begin; i < items.end; ++i) {
    const int32_t* fact = &facts[static_cast<size_t>((i - items.begin) * kNumItemFacts)];
    VisionItem item{.is_video = fact[kIsVideo] != 0, .t = fact[kGridT], .h = fact[kGridH], .w = fact[kGridW]};
    item.frames_are_raw = fact[kIsRaw] != 0;
    const auto spans = read_ends<kNumItemEnds>(file, "vision/ends", i);
    const auto places = read_rows<int32_t>(file, "vision/places", spans[kPlacesEnd].begin, spans[kPlacesEnd].end);
    item.token_begins.assign(places.begin(), places.end());
    for (int64_t f = spans[kFramesEnd].begin; f < spans[kFramesEnd].end; ++f) {
      const Span bytes = read_ends<1>(file, "vision/frame_ends", f)[0];
      item.frames.push_back(read_rows<uint8_t>(file, "vision/frame_bytes", bytes.begin, bytes.end));
    }
    sample.vision.push_back(std::move(item));
  }
}

}  // namespace

int64_t PackColumns::num_bytes() const {
  int64_t bytes = 0;
  for_each_table(*this, [&](const char*, const auto& column, int, bool) {
    bytes += static_cast<int64_t>(column.size() * sizeof(column[0]));
  });
  return bytes;
}

void PackColumns::append(const Sample& sample, int64_t record) {
  extend(tokens, sample.tokens.data(), sample.tokens.data() + sample.tokens.size());
  for (const Span& span : sample.labels) labels.insert(labels.end(), {narrow(span.begin), narrow(span.end)});
  for (const VisionItem& item : sample.vision) {
    item_facts.insert(item_facts.end(),
                      {item.is_video, narrow(item.t), narrow(item.h), narrow(item.w), item.frames_are_raw});
    for (int64_t begin : item.token_begins) places.push_back(narrow(begin));
    for (const auto& frame : item.frames) {
      extend(frame_bytes, frame.data(), frame.data() + frame.size());
      frame_ends.push_back(static_cast<int64_t>(frame_bytes.size()));
    }
    item_ends.insert(item_ends.end(), {static_cast<int64_t>(places.size()), static_cast<int64_t>(frame_ends.size())});
  }
  id_bytes.insert(id_bytes.end(), sample.id.begin(), sample.id.end());
  const std::string choices = choices_text(sample);
  choice_bytes.insert(choice_bytes.end(), choices.begin(), choices.end());
  const size_t ends[kNumSampleEnds] = {
      tokens.size(), labels.size() / 2, item_facts.size() / kNumItemFacts, id_bytes.size(), choice_bytes.size()};
  for (size_t end : ends) sample_ends.push_back(static_cast<int64_t>(end));
  sample_facts.insert(sample_facts.end(), {narrow(sample.num_label_tokens()), sample.num_choices, sample.answer});
  sample_records.push_back(record);
  sample_xxh3.push_back(sample_hash(sample));
}

uint64_t sample_hash(const Sample& sample) {
  Hash64 hash;
  hash.add(sample.tokens);
  hash.add(sample.labels);
  hash.add(static_cast<int64_t>(sample.vision.size()));
  for (const VisionItem& item : sample.vision) {
    for (int64_t fact : {int64_t{item.is_video}, item.t, item.h, item.w, int64_t{item.frames_are_raw}}) hash.add(fact);
    hash.add(item.token_begins);
    hash.add(static_cast<int64_t>(item.frames.size()));
    for (const auto& frame : item.frames) hash.add(frame);
  }
  hash.add(int64_t{sample.num_choices});
  hash.add(int64_t{sample.answer});
  hash.add(std::string_view(sample.id));
  hash.add(std::string_view(choices_text(sample)));
  return hash.value();
}

TableRows rows_of(const PackColumns& columns) {
  TableRows rows;
  size_t i = 0;
  for_each_table(columns, [&](const char*, const auto& column, int width, bool) {
    rows[i++] = static_cast<int64_t>(column.size()) / width;
  });
  return rows;
}

TableRows rows_of(const H5File& file) {
  TableRows rows;
  size_t i = 0;
  PackColumns columns;
  for_each_table(columns, [&](const char* table, const auto&, int, bool) { rows[i++] = file.num_rows(table); });
  return rows;
}

TableRows operator+(TableRows a, const TableRows& b) {
  for (int i = 0; i < kNumTables; ++i) a[i] += b[i];
  return a;
}

int64_t rows_in(const TableRows& rows, std::string_view table) {
  int64_t found = 0;
  size_t i = 0;
  PackColumns columns;
  for_each_table(columns, [&](const char* name, const auto&, int, bool) {
    if (name == table) found = rows[i];
    ++i;
  });
  return found;
}

void IndexHash::add(const PackColumns& columns) {
  size_t i = 0;
  for_each_table(columns, [&](const char*, const auto& column, int, bool is_index) {
    if (is_index) hashes_[i].add(column.data(), column.size() * sizeof(column[0]));
    ++i;
  });
}

std::string IndexHash::text() const {
  Hash64 all;
  for (const Hash64& hash : hashes_) all.add(static_cast<int64_t>(hash.value()));
  return hex16(all.value());
}

void create_tables(H5File& file, const TableRows& rows) {
  size_t i = 0;
  PackColumns columns;
  for_each_table(columns, [&](const char* table, const auto& column, int width, bool) {
    using T = typename std::decay_t<decltype(column)>::value_type;
    file.create_table<T>(table, rows[i++], width);
  });
}

void shift(PackColumns& columns, const TableRows& before) {
  const int64_t sample_totals[kNumSampleEnds] = {rows_in(before, "tokens"),
                                                 rows_in(before, "labels"),
                                                 rows_in(before, "vision/items"),
                                                 rows_in(before, "ids"),
                                                 rows_in(before, "choices")};
  const int64_t item_totals[kNumItemEnds] = {rows_in(before, "vision/places"), rows_in(before, "vision/frame_ends")};
  const int64_t frame_total = rows_in(before, "vision/frame_bytes");
  for (size_t i = 0; i < columns.sample_ends.size(); ++i) columns.sample_ends[i] += sample_totals[i % kNumSampleEnds];
  for (size_t i = 0; i < columns.item_ends.size(); ++i) columns.item_ends[i] += item_totals[i % kNumItemEnds];
  for (int64_t& end : columns.frame_ends) end += frame_total;
}

void write_tables(H5File& file, const PackColumns& columns, const TableRows& before) {
  size_t i = 0;
  for_each_table(columns, [&](const char* table, const auto& column, int, bool) {
    using T = typename std::decay_t<decltype(column)>::value_type;
    file.write<T>(table, before[i++], std::span<const T>(column));
  });
}

PackColumns read_tables(const H5File& file) {
  PackColumns columns;
  for_each_table(columns, [&](const char* table, auto& column, int width, bool) {
    using T = typename std::decay_t<decltype(column)>::value_type;
    column = read_rows<T>(file, table, 0, file.num_rows(table), width);
  });
  return columns;
}

IndexHash read_index_hash(const H5File& file) {
  constexpr int64_t kStretch = 1 << 16;
  IndexHash hash;
  PackColumns columns;
  for_each_table(columns, [&](const char* table, auto& column, int width, bool is_index) {
    if (!is_index) return;
    using T = typename std::decay_t<decltype(column)>::value_type;
    HANOK_REQUIRE(file.num_columns(table) == width, kData)
        << "packed file: got " << file.num_columns(table) << " columns, expected " << width << "; " << file.path()
        << ", table " << table << "; delete it and pack the data again";
    const int64_t rows = file.num_rows(table);
    for (int64_t begin = 0; begin < rows; begin += kStretch) {
      column = read_rows<T>(file, table, begin, std::min(rows, begin + kStretch), width);
      hash.add(columns);
      column.clear();
    }
  });
  return hash;
}

std::string read_sample_id(const H5File& file, int64_t index) {
  const Span span = read_ends<kNumSampleEnds>(file, "samples/ends", index)[kIdEnd];
  return text_of(read_rows<uint8_t>(file, "ids", span.begin, span.end));
}

Sample read_sample(const H5File& file, int64_t index) {
  const auto spans = read_ends<kNumSampleEnds>(file, "samples/ends", index);
  const auto facts = read_rows<int32_t>(file, "samples/facts", index, index + 1, kNumSampleFacts);
  const uint64_t expected = read_rows<uint64_t>(file, "samples/xxh3", index, index + 1)[0];
  Sample sample;
  sample.id = text_of(read_rows<uint8_t>(file, "ids", spans[kIdEnd].begin, spans[kIdEnd].end));
  sample.tokens = read_rows<int32_t>(file, "tokens", spans[kTokensEnd].begin, spans[kTokensEnd].end);
  const auto labels = read_rows<int32_t>(file, "labels", spans[kLabelsEnd].begin, spans[kLabelsEnd].end, 2);
  for (size_t i = 0; i < labels.size(); i += 2) sample.labels.push_back({labels[i], labels[i + 1]});
  read_vision(file, spans[kItemsEnd], sample);
  sample.num_choices = facts[kNumChoices];
  sample.answer = facts[kAnswer];
  const Span& choices = spans[kChoicesEnd];
  const std::string text = text_of(read_rows<uint8_t>(file, "choices", choices.begin, choices.end));
  try {
    const auto json = nlohmann::json::parse(text);
    if (json.is_object()) {
      sample.question = json.value("question", "");
      sample.choices = json.value("choices", std::vector<std::string>());
    }
  } catch (const nlohmann::json::exception&) {  // no text: a sample without choices; damaged: the checksum tells
  }
  const uint64_t got = sample_hash(sample);
  HANOK_REQUIRE(got == expected, kData) << "packed sample " << index << ": got checksum " << hex16(got) << ", expected "
                                        << hex16(expected) << "; " << file.path()
                                        << " is damaged; delete it and pack the data again";
  return sample;
}

}  // namespace hanok
