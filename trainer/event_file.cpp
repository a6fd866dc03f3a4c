#include "trainer/event_file.h"

#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>

#include "base/clock.h"
#include "base/error.h"
#include "base/host_name.h"
#include "trainer/append_file.h"
#include "trainer/progress.h"

namespace hanok {
namespace {

constexpr const char* kPrefix = "events.out.tfevents.";

// Protocol buffers: a field is (number << 3 | wire type), then a varint (0), 8 bytes (1), a length and bytes (2), or
// 4 bytes (5). Numbers are those of event.proto and summary.proto.
void put_varint(std::string& out, uint64_t value) {
  for (; value >= 128; value >>= 7) out += static_cast<char>(value | 128);
  out += static_cast<char>(value);
}

template <class T>
void put_raw(std::string& out, T value) {
  char bytes[sizeof value];  // little-endian, as every machine that this builds for
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof value);
}

void put_bytes(std::string& out, int field, std::string_view bytes) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | 2);
  put_varint(out, bytes.size());
  out += bytes;
}

std::string event_of(int64_t step) {
  std::string event;
  put_varint(event, 1 << 3 | 1);  // wall_time
  put_raw(event, wall_s());
  put_varint(event, 2 << 3 | 0);  // step
  put_varint(event, static_cast<uint64_t>(step));
  return event;
}

uint32_t masked_crc(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return (crc >> 15 | crc << 17) + 0xa282ead8U;
}

std::string record_of(std::string_view event) {
  std::string out;
  put_raw(out, static_cast<uint64_t>(event.size()));
  put_raw(out, masked_crc(out));
  out += event;
  put_raw(out, masked_crc(event));
  return out;
}

/// Seconds in a file's name, by which TensorBoard orders files; beyond those of every earlier file.
int64_t name_seconds(const std::string& folder) {
  auto seconds = static_cast<int64_t>(wall_s());
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix)) continue;
    int64_t earlier = 0;
    const char* begin = name.data() + std::strlen(kPrefix);
    std::from_chars(begin, name.data() + name.size(), earlier);
    if (earlier < 9'999'999'999) seconds = std::max(seconds, earlier + 1);  // ten digits sort as numbers do
  }
  return seconds;
}

std::string new_path(const std::string& folder) {
  return concat(folder,
                "/",
                kPrefix,
                printed("%010.0f", static_cast<double>(name_seconds(folder))),
                ".",
                host_name(),
                ".",
                static_cast<int64_t>(getpid()));
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> out{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0x82f63b78U : crc >> 1;
      out[i] = crc;
    }
    return out;
  }();
  uint32_t crc = 0xffffffffU;
  for (const char c : bytes) crc = crc >> 8 ^ table[(crc ^ static_cast<unsigned char>(c)) & 255];
  return ~crc;
}

struct EventFile::State {
  AppendFile file;
};

EventFile::EventFile(const std::string& folder, int64_t first_step) : state_(new State{AppendFile(new_path(folder))}) {
  std::string version = event_of(0);
  put_bytes(version, 3, "brain.Event:2");  // file_version
  std::string session;
  put_varint(session, 1 << 3 | 0);  // status
  put_varint(session, 1);           // START: forget what lies at this step and beyond
  std::string start = event_of(first_step);
  put_bytes(start, 7, session);  // session_log
  state_->file.append(record_of(version) + record_of(start));
}

EventFile::~EventFile() = default;

void EventFile::add(int64_t step, const Scalars& scalars) {
  std::string summary;
  for (const auto& [tag, number] : scalars) {
    std::string value;
    put_bytes(value, 1, tag);
    put_varint(value, 2 << 3 | 5);  // simple_value
    put_raw(value, static_cast<float>(number));
    put_bytes(summary, 1, value);
  }
  std::string event = event_of(step);
  put_bytes(event, 5, summary);
  state_->file.append(record_of(event));
}

}  // namespace hanok
