#include "trainer/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <mutex>

#include "base/log.h"

namespace hanok {
namespace {

constexpr double kRedrawS = 0.1, kPlainLineS = 15;

/// The bar that is on the screen now; lines are printed above it.
struct Screen {
  std::mutex mutex;
  std::string bar;
};
Screen& screen() {
  static Screen screen;
  return screen;
}

void write_out(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

int terminal_columns() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 120;
}

std::string bar_of(double share, int width) {
  const int full = std::clamp(static_cast<int>(share * width), 0, width);
  return "[" + std::string(full, '=') + std::string(width - full, ' ') + "]";
}

}  // namespace

Progress::Progress(std::string what, int64_t total, std::string unit, double quiet_s)
    : what_(std::move(what)),
      unit_(std::move(unit)),
      total_(total),
      quiet_s_(quiet_s),
      start_s_(now_s()),
      is_terminal_(on_terminal()) {}

Progress::~Progress() {
  if (!shown_ || !is_terminal_) return;
  const std::lock_guard lock(screen().mutex);
  screen().bar.clear();
  write_out("\r\033[K");
}

void Progress::update(int64_t done, const std::string& note, double left_s) {
  if (first_ < 0) first_ = done;
  if (!is_log_rank0()) return;
  const double now = now_s(), elapsed = now - start_s_;
  if (elapsed < quiet_s_) return;
  const bool is_last = total_ > 0 && done >= total_;
  if (now - shown_s_ < (is_terminal_ ? kRedrawS : kPlainLineS) && !(is_last && is_terminal_)) return;
  shown_s_ = now;

  std::string text = what_ + " ";
  if (total_ > 0) {
    const double share = static_cast<double>(done) / static_cast<double>(total_);
    if (is_terminal_) text += bar_of(share, 24) + " ";
    text += concat(done, "/", total_, " ", unit_);
    if (left_s < 0 && done > first_)
      left_s = elapsed * static_cast<double>(total_ - done) / static_cast<double>(done - first_);
    if (left_s >= 0 && !is_last) text += ", " + duration_text(left_s) + " left";
  } else {
    text += concat(done, " ", unit_);
  }
  if (!note.empty()) text += ", " + note;
  if (!is_terminal_) return print_line(text);

  shown_ = true;
  text.resize(std::min<size_t>(text.size(), std::max(terminal_columns() - 1, 1)));
  const std::lock_guard lock(screen().mutex);
  screen().bar = text;
  write_out("\r\033[K" + text + "\r");  // the cursor at its start: a log line that comes now overwrites it
}

void print_line(const std::string& text) {
  const std::lock_guard lock(screen().mutex);
  const std::string& bar = screen().bar;
  write_out(bar.empty() ? text + "\n" : "\r\033[K" + text + "\n" + bar + "\r");
}

bool on_terminal() {
  if (!isatty(STDOUT_FILENO)) return false;
  // mpirun gives its ranks a terminal of their own even when it writes to a file itself: look at where it writes.
  std::error_code error;
  const auto parents = std::filesystem::read_symlink(concat("/proc/", getppid(), "/fd/1"), error);
  return error || parents.string().starts_with("/dev/pts/") || parents.string().starts_with("/dev/tty");
}

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string duration_text(double seconds) {
  const auto total = static_cast<int64_t>(std::llround(std::max(seconds, 0.0)));
  const int64_t days = total / 86400, hours = total / 3600 % 24, minutes = total / 60 % 60;
  std::array<char, 64> text;
  if (days > 0) {
    std::snprintf(text.data(), text.size(), "%ldd %02ld:%02ld", days, hours, minutes);
  } else if (hours > 0) {
    std::snprintf(text.data(), text.size(), "%ld:%02ld:%02ld", hours, minutes, total % 60);
  } else {
    std::snprintf(text.data(), text.size(), "%ld:%02ld", minutes, total % 60);
  }
  return text.data();
}

std::string short_number(double value, const std::string& unit) {
  std::string text = short_number(value);
  const size_t digits = text.find_first_not_of("-.0123456789");
  const size_t prefix = digits == std::string::npos ? text.size() : digits;
  return text.substr(0, prefix) + " " + text.substr(prefix) + unit;
}

std::string short_number(double value) {
  static constexpr const char* kPrefixes[] = {"", "k", "M", "G", "T", "P"};
  int prefix = 0;
  while (std::abs(value) >= 999.5 && prefix < 5) {
    value /= 1000;
    ++prefix;
  }
  const double size = std::abs(value);
  const int decimals = prefix == 0 && value == std::floor(value) ? 0 : size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
  std::array<char, 64> text;
  std::snprintf(text.data(), text.size(), "%.*f%s", decimals, value, kPrefixes[prefix]);
  return text.data();
}

std::string printed(const char* format, double value) {
  std::array<char, 128> text;
  std::snprintf(text.data(), text.size(), format, value);
  return text.data();
}

}  // namespace hanok
