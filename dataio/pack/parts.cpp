#include "dataio/pack/parts.h"

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "base/log.h"
#include "dataio/file_io.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;

uint64_t block_hash(const PackBlock& block) {
  Hash64 hash;
  for_each_table(block.columns, [&](const char*, const auto& column, int, bool) { hash.add(column); });
  hash.add(std::string_view(block.bad_lines));
  hash.add(block.num_records);
  return hash.value();
}

std::span<const uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

void rename_durably(const std::string& from, const std::string& to) {
  std::error_code error;
  fs::rename(from, to, error);
  HANOK_REQUIRE(!error, kIo) << "pack: got \"" << error.message() << "\", expected to rename " << from << " to " << to
                             << "; check rights of the folder";
  sync_path(fs::path(to).parent_path().string());
}

}  // namespace

std::string BadRecord::json_line() const {
  return nlohmann::json{{"number", number}, {"id", id}, {"reason", reason}, {"detail", detail}}.dump(
             -1, ' ', false, nlohmann::json::error_handler_t::replace) +
         "\n";
}

std::vector<BadRecord> parse_bad_lines(const std::string& text) {
  std::vector<BadRecord> records;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    try {
      const auto json = nlohmann::json::parse(line);
      records.push_back({.number = json.value("number", int64_t{0}),
                         .id = json.value("id", ""),
                         .reason = json.value("reason", ""),
                         .detail = json.value("detail", "")});
    } catch (const nlohmann::json::exception&) {  // a damaged block: merge() finds it by its checksum
    }
  }
  return records;
}

std::string read_bad_lines(const H5File& file) {
  std::string lines(static_cast<size_t>(file.num_rows("bad")), '\0');
  file.read<uint8_t>("bad", 0, {reinterpret_cast<uint8_t*>(lines.data()), lines.size()});
  return lines;
}

PackParts::PackParts(std::string folder, std::string key) : folder_(std::move(folder)), key_(std::move(key)) {
  std::error_code error;
  fs::create_directories(folder_, error);
  HANOK_REQUIRE(!error, kIo) << "pack: got \"" << error.message() << "\", expected to make the folder " << folder_
                             << "; check data.cache";
  while (fs::exists(part_path(rows_.size()))) {
    try {
      const H5File part = H5File::open(part_path(rows_.size()));
      HANOK_REQUIRE(part.text_attribute("key") == key_ && part.int_attribute("first_record") == num_records_, kData)
          << "part of a pack: got another one, expected what follows record " << num_records_ << "; " << part.path();
      num_records_ += part.int_attribute("num_records");
      rows_.push_back(rows_of(part));
    } catch (const Error& bad) {
      HANOK_LOG(WARNING) << bad.what() << "; it is packed again";
      break;
    }
  }
  remove_from(rows_.size());
}

std::string PackParts::part_path(size_t number) const {
  char name[32];
  std::snprintf(name, sizeof name, "%08zu.h5", number);
  return folder_ + "/" + name;
}

void PackParts::remove_from(size_t number) {
  std::vector<fs::path> doomed;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    bool is_kept = false;
    for (size_t i = 0; i < number && !is_kept; ++i) is_kept = entry.path() == fs::path(part_path(i));
    if (!is_kept) doomed.push_back(entry.path());
  }
  std::error_code ignored;
  for (const fs::path& path : doomed) fs::remove(path, ignored);
}

void PackParts::add(const PackBlock& block) {
  const std::string path = part_path(rows_.size());
  H5File part = H5File::create(path + ".partial");
  const TableRows rows = rows_of(block.columns);
  create_tables(part, rows);
  write_tables(part, block.columns, TableRows{});
  part.create_table<uint8_t>("bad", static_cast<int64_t>(block.bad_lines.size()), 1);
  part.write<uint8_t>("bad", 0, bytes_of(block.bad_lines));
  part.set_attribute("key", key_);
  part.set_attribute("first_record", num_records_);
  part.set_attribute("num_records", block.num_records);
  part.set_attribute("xxh3", hex16(block_hash(block)));
  part.close();
  rename_durably(path + ".partial", path);
  rows_.push_back(rows);
  num_records_ += block.num_records;
}

PackBlock PackParts::read_part(size_t number) const {
  const H5File part = H5File::open(part_path(number));
  PackBlock block{.columns = read_tables(part), .num_records = part.int_attribute("num_records")};
  block.bad_lines = read_bad_lines(part);
  const std::string got = hex16(block_hash(block)), expected = part.text_attribute("xxh3");
  HANOK_REQUIRE(got == expected, kData) << "part of a pack: got checksum " << got << ", expected " << expected << "; "
                                        << part.path();
  return block;
}

std::string PackParts::bad_lines() const {
  std::string lines;
  for (size_t i = 0; i < rows_.size(); ++i) lines += read_bad_lines(H5File::open(part_path(i)));
  return lines;
}

TableRows PackParts::rows() const {
  TableRows total{};
  for (const TableRows& rows : rows_) total = total + rows;
  return total;
}

void PackParts::merge(const std::string& path,
                      const std::map<std::string, std::string>& texts,
                      const std::map<std::string, int64_t>& numbers) {
  const std::string bad = bad_lines();
  H5File file = H5File::create(path + ".partial");
  create_tables(file, rows());
  file.create_table<uint8_t>("bad", static_cast<int64_t>(bad.size()), 1);
  file.write<uint8_t>("bad", 0, bytes_of(bad));
  TableRows before{};
  IndexHash index_hash;
  for (size_t i = 0; i < rows_.size(); ++i) {
    PackBlock block;
    try {
      block = read_part(i);
    } catch (const Error& error) {
      remove_from(i);
      HANOK_FAIL(kIo) << error.what() << " is damaged and was removed; start again: the pack goes on from there";
    }
    shift(block.columns, before);
    write_tables(file, block.columns, before);
    index_hash.add(block.columns);
    before = before + rows_[i];
  }
  for (const auto& [name, text] : texts) file.set_attribute(name, text);
  for (const auto& [name, number] : numbers) file.set_attribute(name, number);
  file.set_attribute("schema", format::kSchema);
  file.set_attribute("version", format::kVersion);
  file.set_attribute("key", key_);
  file.set_attribute("index_xxh3", index_hash.text());
  file.close();
  rename_durably(path + ".partial", path);
}

void PackParts::remove() {
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

}  // namespace hanok
