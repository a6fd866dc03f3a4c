#include "dataio/store/json_stream.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "dataio/file_io.h"
#include "dataio/store/strict_json.h"
#include "dataio/text/unicode.h"

namespace hanok {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 32, kMaxValues = 65536, kMaxMemberValues = 1024;

/// Builds values from events, and hands those of a streamed container to its callback.
class Builder : public nlohmann::json_sax<json> {
 public:
  Builder(const std::string& where, const std::vector<JsonStream>& streams, RepeatedKeys repeated)
      : where_(where), streams_(streams), repeated_(repeated), seen_(streams.size()) {}
  json take() { return std::move(root_); }

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override { return value(v); }
  bool number_unsigned(number_unsigned_t v) override { return value(v); }
  bool number_float(number_float_t v, const string_t&) override { return value(v); }
  bool string(string_t& v) override { return value(std::move(v)); }
  bool binary(binary_t&) override { return false; }  // not in text
  bool start_object(size_t) override { return open(json::object()); }
  bool start_array(size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& v) override {
    Frame& frame = frames_.back();
    frame.key = std::move(v);
    HANOK_REQUIRE(repeated_ == RepeatedKeys::kLastCounts || !frame.container || !frame.container->contains(frame.key),
                  kData)
        << "JSON: got key " << shown(frame.key) << " twice, expected it once; " << where_ << "; remove one";
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    HANOK_FAIL(kData) << "JSON: got an error at byte " << position << ", expected one complete value; " << where_
                      << "; write the file again, or copy it again from its source";
  }

 private:
  struct Frame {
    json* container = nullptr;  // null for a streamed container
    int stream = -1;
    std::string key;
  };

  std::string path() const {
    std::string out;
    for (size_t i = 0; i < frames_.size(); ++i) out += (i ? "." : "") + frames_[i].key;
    return out;
  }

  /// The stream whose container begins here, or -1.
  int stream_here() const {
    if (streams_.empty() || member_stream_ >= 0 || frames_.size() > 3) return -1;
    const std::string here = path();
    for (size_t i = 0; i < streams_.size(); ++i) {
      if (streams_[i].path == here) return static_cast<int>(i);
    }
    return -1;
  }

  bool value(json v) {
    if (is_member()) {
      deliver(std::move(v));
      return true;
    }
    HANOK_REQUIRE(v.is_null() || stream_here() < 0, kData)
        << "key " << path() << ": got a " << v.type_name() << ", expected a list or an object; " << where_;
    place(std::move(v));
    return true;
  }

  bool open(json empty) {
    HANOK_REQUIRE(frames_.size() < kMaxDepth, kData) << "JSON: got more than " << kMaxDepth << " levels at key "
                                                     << unicode::beginning(path(), 200) << "; " << where_;
    if (is_member()) {
      member_stream_ = frames_.back().stream;
      member_ = std::move(empty);
      member_values_ = 1;
      frames_.push_back({.container = &member_});
    } else if (const int stream = stream_here(); stream >= 0) {
      HANOK_REQUIRE(!seen_[stream], kData) << "key " << path() << ": given twice; " << where_;
      seen_[stream] = true;
      if (!frames_.empty()) place(nullptr);
      frames_.push_back({.stream = stream});
    } else {
      frames_.push_back({.container = place(std::move(empty))});
    }
    return true;
  }

  bool close() {
    frames_.pop_back();
    if (member_stream_ >= 0 && is_member()) {
      member_stream_ = -1;
      deliver(std::move(member_));
    }
    return true;
  }

  /// Whether what comes now is a direct member of a streamed container.
  bool is_member() const { return !frames_.empty() && frames_.back().stream >= 0; }

  void deliver(json v) { streams_[frames_.back().stream].member(frames_.back().key, v); }

  json* place(json v) {
    const bool in_member = member_stream_ >= 0;
    size_t& count = in_member ? member_values_ : values_;
    HANOK_REQUIRE(++count <= (in_member ? kMaxMemberValues : kMaxValues), kData)
        << "JSON: got too many values at key " << unicode::beginning(path(), 200) << "; " << where_;
    if (frames_.empty()) return &(root_ = std::move(v));
    Frame& frame = frames_.back();
    if (frame.container->is_array()) return &frame.container->emplace_back(std::move(v));
    json& slot = (*frame.container)[frame.key];
    slot = std::move(v);
    return &slot;
  }

  const std::string& where_;
  const std::vector<JsonStream>& streams_;
  const RepeatedKeys repeated_;
  std::vector<bool> seen_;
  json root_, member_;
  std::vector<Frame> frames_;
  int member_stream_ = -1;
  size_t values_ = 0, member_values_ = 0;
};

}  // namespace

json read_json(std::string_view text,
               const std::string& where,
               const std::vector<JsonStream>& streams,
               RepeatedKeys repeated) {
  Builder builder(where, streams, repeated);
  json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

json foreign_json(const std::string& path) {
  return read_json(read_file(path), path);
}

}  // namespace hanok
