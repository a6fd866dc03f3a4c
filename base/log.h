// Log lines for people. Machines read metrics.jsonl (trainer/metrics.h) instead; the two are never mixed.
// INFO: one event. WARNING: training goes on, but not as asked. ERROR: this process is about to exit.
// glog is included by log.cpp alone, because glog and libtorch both define LOG and CHECK.
#pragma once

#include <string>

#include "base/error.h"

namespace hanok {

enum class LogLevel { INFO, WARNING, ERROR };

/// Starts glog. `directory` empty: stderr only. Call once, before the first line.
void start_logging(const char* program, int world_rank, int world_size, const std::string& directory, int verbosity);
void set_log_directory(const std::string& directory);
void log_line(LogLevel level, const char* file, int line, const std::string& text);
bool is_log_rank0();
bool is_verbose(int level);

class LogStream {
 public:
  LogStream(LogLevel level, const char* file, int line) : level_(level), file_(file), line_(line) {}
  ~LogStream() { log_line(level_, file_, line_, text_); }
  template <class T>
  LogStream& operator<<(const T& value) {
    error_detail::append(text_, value);
    return *this;
  }

 private:
  LogLevel level_;
  const char* file_;
  int line_;
  std::string text_;
};

}  // namespace hanok

#define HANOK_LOG(level) ::hanok::LogStream(::hanok::LogLevel::level, __FILE__, __LINE__)
#define HANOK_LOG_RANK0(level)    \
  if (!::hanok::is_log_rank0()) { \
  } else                          \
    HANOK_LOG(level)
/// Level 1: once per step. Level 2: once per collective.
#define HANOK_VLOG(level)             \
  if (!::hanok::is_verbose(level)) {  \
  } else                              \
    HANOK_LOG(INFO)
