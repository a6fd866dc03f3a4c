#include "dataio/store/strict_json.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "base/error.h"
#include "dataio/text/unicode.h"

namespace hanok {

namespace {

using Json = nlohmann::json;

constexpr size_t kMaxDepth = 64;

// A first pass without building anything. (The library's parser callback could do the same, but it scans the whole
// parent at the end of each child, which is quadratic in what a file may hold.)
class StrictnessCheck : public nlohmann::json_sax<Json> {
 public:
  explicit StrictnessCheck(const std::string& file) : file_(file) {}
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    HANOK_REQUIRE(keys_.back().insert(name).second, kCheckpoint)
        << "JSON key: got " << shown(name) << " twice, expected once; " << file_ << "; fetch or write the file again";
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const Json::exception&) override {
    HANOK_FAIL(kCheckpoint) << "JSON: got an error at byte " << position << ", expected one complete value; " << file_
                            << "; the file is damaged or cut short: fetch or write it again";
  }

 private:
  bool open() {
    keys_.emplace_back();
    HANOK_REQUIRE(keys_.size() <= kMaxDepth, kCheckpoint)
        << "JSON nesting: got more than " << kMaxDepth << " levels, expected at most that; " << file_
        << "; fetch or write the file again";
    return true;
  }
  bool close() {
    keys_.pop_back();
    return true;
  }

  const std::string& file_;
  std::vector<std::set<std::string>> keys_;  // of every object or array that is open
};

const Json& member(const Json& object, const char* key, const std::string& file) {
  HANOK_REQUIRE(object.is_object() && object.contains(key), kCheckpoint)
      << "JSON member '" << key << "': got none, expected one; " << file
      << "; the file was not written by this program";
  return object.at(key);
}

}  // namespace

Json parse_strict_json(std::string_view text, const std::string& file) {
  // The library takes a zero byte for the end of its input and would let anything follow it.
  const size_t zero = text.find('\0');
  HANOK_REQUIRE(zero == std::string_view::npos, kCheckpoint)
      << "JSON: got a zero byte at " << zero << ", expected text; " << file << "; fetch or write the file again";
  StrictnessCheck check(file);
  Json::sax_parse(text.begin(), text.end(), &check);
  return Json::parse(text.begin(), text.end());
}

std::string strict_json_text(const Json& value, const std::string& file) {
  try {
    return value.dump();
  } catch (const Json::type_error&) {  // the only one that dump() has
    HANOK_FAIL(kCheckpoint) << "JSON text: got a string that is not UTF-8, expected UTF-8; " << file
                            << "; look for bytes of another encoding in names or state";
  }
}

const Json& json_list(const Json& object, const char* key, const std::string& file) {
  const Json& value = member(object, key, file);
  HANOK_REQUIRE(value.is_array(), kCheckpoint) << "JSON member '" << key << "': got a " << value.type_name()
                                               << ", expected a list; " << file << "; fetch or write the file again";
  return value;
}

std::string json_string(const Json& object, const char* key, const std::string& file) {
  const Json& value = member(object, key, file);
  HANOK_REQUIRE(value.is_string(), kCheckpoint) << "JSON member '" << key << "': got a " << value.type_name()
                                                << ", expected a string; " << file << "; fetch or write the file again";
  return value.get<std::string>();
}

int64_t json_count(const Json& value, const std::string& file) {
  constexpr uint64_t kMax = std::numeric_limits<int64_t>::max();
  HANOK_REQUIRE(value.is_number_unsigned() && value.get<uint64_t>() <= kMax, kCheckpoint)
      << "JSON number: got " << shown(value.is_structured() ? value.type_name() : value.dump())
      << ", expected an integer from 0 to 2^63 - 1; " << file << "; fetch or write the file again";
  return value.get<int64_t>();
}

int64_t json_count(const Json& object, const char* key, const std::string& file) {
  return json_count(member(object, key, file), concat(file, " (", key, ")"));
}

std::string shown(std::string_view text) {
  const std::string begin = unicode::beginning(text, 120);
  std::string quoted = Json(begin).dump(-1, ' ', false, Json::error_handler_t::replace);
  quoted.front() = quoted.back() = '\'';
  if (begin.size() < text.size()) quoted.insert(quoted.size() - 1, "...");
  return quoted;
}

}  // namespace hanok
