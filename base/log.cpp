#include "base/log.h"

#include <glog/logging.h>

#include <atomic>
#include <iostream>

namespace hanok {

namespace {
std::atomic<bool> started{false};
int rank_ = 0;
int size_ = 1;
int verbosity_ = 0;

google::LogSeverity severity(LogLevel level) {
  switch (level) {
    case LogLevel::INFO: return google::GLOG_INFO;
    case LogLevel::WARNING: return google::GLOG_WARNING;
    case LogLevel::ERROR: return google::GLOG_ERROR;
  }
  return google::GLOG_ERROR;
}
/// Length of the UTF-8 sequence that begins here; 0 if none does.
size_t sequence_bytes(const std::string& text, size_t at) {
  const auto lead = static_cast<unsigned char>(text[at]);
  const size_t length = lead < 0x80 ? 1 : lead >= 0xc2 && lead < 0xe0 ? 2 : lead >= 0xe0 && lead < 0xf0 ? 3 : 4;
  if ((lead >= 0x80 && lead < 0xc2) || lead > 0xf4 || at + length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((static_cast<unsigned char>(text[at + i]) & 0xc0) != 0x80) return 0;
  return length;
}

/// Bytes of broken files may stand in a message: none may steer a terminal, and no message fills a screen.
std::string printable(const std::string& text) {
  constexpr size_t kMaxBytes = 12000;
  const char* digits = "0123456789abcdef";
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (out.size() >= kMaxBytes) return out + " ... (the rest is left out)";
    const auto byte = static_cast<unsigned char>(text[at]);
    const size_t length = sequence_bytes(text, at);
    const bool is_plain = length > 0 && ((byte >= 0x20 && byte != 0x7f) || byte == '\n' || byte == '\t');
    if (is_plain) {
      out.append(text, at, length);
    } else {
      out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
    }
    at += is_plain ? length : 1;
  }
  return out;
}

}  // namespace

void start_logging(const char* program, int world_rank, int world_size, const std::string& directory, int verbosity) {
  rank_ = world_rank;
  size_ = world_size;
  verbosity_ = verbosity;
  if (started.exchange(true)) return;
  FLAGS_logtostderr = directory.empty();
  FLAGS_alsologtostderr = !directory.empty();
  if (!directory.empty()) FLAGS_log_dir = directory;
  google::InitGoogleLogging(program);
}

void set_log_directory(const std::string& directory) {
  FLAGS_logtostderr = false;
  FLAGS_alsologtostderr = true;
  const std::string base = directory + "/rank" + std::to_string(rank_) + ".";
  google::SetLogDestination(google::GLOG_INFO, base.c_str());
  google::SetLogDestination(google::GLOG_WARNING, "");
  google::SetLogDestination(google::GLOG_ERROR, "");
  google::SetLogSymlink(google::GLOG_INFO, "");
}

void log_line(LogLevel level, const char* file, int line, const std::string& text) {
  if (!started) {  // tests and tools that never started glog
    std::cerr << printable(text) << '\n';
    return;
  }
  google::LogMessage message(file, line, severity(level));
  if (size_ > 1) message.stream() << "[rank " << rank_ << "] ";
  message.stream() << printable(text);
}

bool is_log_rank0() {
  return rank_ == 0;
}
bool is_verbose(int level) {
  return level <= verbosity_;
}

}  // namespace hanok
