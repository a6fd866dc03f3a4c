#include "trainer/progress.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <mutex>

#include "base/clock.h"
#include "base/log.h"

namespace hanok {
namespace {

constexpr double kRedrawS = 0.1, kPlainLineS = 15;
constexpr int kWidestBar = 64;

/// The bar that is on the screen now; lines are printed above it.
struct Screen {
  std::mutex mutex;
  std::string bar;
  TerminalUse use;
};
Screen& screen() {
  static Screen screen;
  return screen;
}

// The cursor rests at the bar's first column: a line that another process writes to the terminal begins there, and when
// the terminal is made narrower and wraps the bar, everything from the cursor on is still the bar.
constexpr const char* kErase = "\r\033[J";

void write_out(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

std::string coloured(const std::string& text, Tone tone) {
  if (!screen().use.colour || tone == Tone::kPlain) return text;
  return (tone == Tone::kGood ? "\033[32m" : "\033[33m") + text + "\033[0m";
}

/// mpirun gives its ranks a terminal of their own, which is there even when it writes to a file itself, and which keeps
/// the size it began with: what counts is where mpirun writes to. Empty: we were not started by it.
std::string mpiruns_output() {
  const std::string parent = concat("/proc/", static_cast<int64_t>(getppid()));
  std::string name;
  std::getline(std::ifstream(parent + "/comm"), name);
  for (const char* launcher : {"mpirun", "mpiexec", "orterun", "orted", "prterun", "prted"})
    if (name == launcher) return parent + "/fd/1";
  return "";
}

int columns_of(int fd) {
  winsize size{};
  return ioctl(fd, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

std::string bar_of(double share, int width) {
  const int inner = width - 2, full = std::clamp(static_cast<int>(share * inner), 0, inner);
  return "[" + std::string(full, '=') + std::string(inner - full, ' ') + "]";
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
  write_out(kErase);
}

void Progress::update(int64_t done, const std::string& note, double left_s) {
  if (first_ < 0) first_ = done;
  if (!is_log_rank0()) return;
  const double now = now_s(), elapsed = now - start_s_;
  if (elapsed < quiet_s_) return;
  const bool is_last = total_ > 0 && done >= total_;
  if (now - shown_s_ < (is_terminal_ ? kRedrawS : kPlainLineS) && !(is_last && is_terminal_)) return;
  shown_s_ = now;

  BarText text{.what = what_, .unit = unit_, .note = note, .done = done, .total = total_};
  if (total_ > 0 && !is_last) {
    if (left_s < 0 && done > first_)
      left_s = elapsed * static_cast<double>(total_ - done) / static_cast<double>(done - first_);
    text.left_s = left_s;
  }
  if (!is_terminal_) return print_line(bar_line(text, 0));

  shown_ = true;
  // Short enough that a line of the log, which has a prefix as long, covers it: nothing of the bar stays behind it.
  const std::string line = bar_line(text, std::clamp(terminal_columns() - 1, 1, kWidestBar));
  const std::lock_guard lock(screen().mutex);
  screen().bar = coloured(line, Tone::kGood);
  write_out("\r" + screen().bar + "\033[J\r");  // over the earlier one, then the rest of it: no empty line in between
}

std::string bar_line(const BarText& text, int columns) {
  constexpr int kNarrowestBar = 6;
  std::string head = text.what + " ", tail = concat(text.done);
  if (text.total > 0) tail += concat("/", text.total);
  tail += " " + text.unit;
  if (text.left_s >= 0) tail += ", " + duration_text(text.left_s) + " left";
  const auto size = [&](size_t more) { return static_cast<int>(head.size() + tail.size() + more); };
  const std::string note = text.note.empty() ? "" : ", " + text.note;
  if (columns <= 0) return head + tail + note;
  const int bar = text.total > 0 ? kNarrowestBar + 1 : 0;
  if (size(note.size()) + bar <= columns) tail += note;
  if (text.total > 0 && size(0) + bar <= columns) {
    const double share = static_cast<double>(text.done) / static_cast<double>(text.total);
    head += bar_of(share, columns - size(1)) + " ";
  }
  return (head + tail).substr(0, static_cast<size_t>(columns));
}

void use_terminal(TerminalUse use) {
  const std::lock_guard lock(screen().mutex);
  screen().use = use;
}

void print_line(const std::string& text, Tone tone) {
  const bool is_terminal = on_terminal();
  const std::lock_guard lock(screen().mutex);
  const std::string line = is_terminal ? coloured(text, tone) : text;
  const std::string& bar = screen().bar;
  write_out(bar.empty() ? line + "\n" : kErase + line + "\n" + bar + "\r");
}

bool on_terminal() {
  if (!screen().use.bar || !isatty(STDOUT_FILENO)) return false;
  const std::string output = mpiruns_output();
  if (output.empty()) return true;
  std::error_code error;
  const std::string leads_to = std::filesystem::read_symlink(output, error).string();
  return leads_to.starts_with("/dev/pts/") || leads_to.starts_with("/dev/tty");
}

int terminal_columns() {
  int columns = 0;
  const std::string output = mpiruns_output();
  const int fd = output.empty() ? -1 : open(output.c_str(), O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  if (fd >= 0) {
    columns = columns_of(fd);
    close(fd);
  }
  if (columns <= 0) columns = columns_of(STDOUT_FILENO);
  return columns > 0 ? columns : 120;
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
