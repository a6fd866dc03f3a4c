#include "trainer/progress.h"

#include <gtest/gtest.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <vector>

#include "base/error.h"

namespace hanok {
namespace {

TEST(BarLine, FillsWhatTheTextLeaves) {
  const BarText half{.what = "sft", .unit = "steps", .note = "loss 2.5", .done = 5, .total = 10, .left_s = 65};
  EXPECT_EQ(bar_line(half, 64), "sft [=============             ] 5/10 steps, 1:05 left, loss 2.5");
  EXPECT_EQ(bar_line(half, 40).size(), 40u);
  EXPECT_EQ(bar_line(half, 40), "sft [======      ] 5/10 steps, 1:05 left");
  EXPECT_EQ(bar_line(half, 30), "sft 5/10 steps, 1:05 left");
  EXPECT_EQ(bar_line(half, 0), "sft 5/10 steps, 1:05 left, loss 2.5");
  EXPECT_EQ(bar_line({.what = "packing", .unit = "samples", .done = 7}, 64), "packing 7 samples");
  for (int columns = 1; columns < 100; ++columns)
    EXPECT_LE(bar_line(half, columns).size(), static_cast<size_t>(columns));
}

/// A screen of `columns` that understands what we write: the rows as a person sees them.
class Screen {
 public:
  explicit Screen(int columns) : columns_(columns) {}
  void write(const std::string& bytes) {
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (bytes.compare(i, 3, "\033[J") == 0) {
        rows_.resize(row_ + 1);
        rows_[row_].resize(std::min(rows_[row_].size(), column_));
        i += 2;
      } else if (bytes[i] == '\r') {
        column_ = 0;
      } else if (bytes[i] == '\n') {
        if (++row_ == rows_.size()) rows_.emplace_back();
      } else {
        ASSERT_GE(bytes[i], ' ') << "an unknown control code";
        if (column_ == columns_) {
          column_ = 0;
          if (++row_ == rows_.size()) rows_.emplace_back();
        }
        if (rows_[row_].size() <= column_) rows_[row_].resize(column_ + 1, ' ');
        rows_[row_][column_++] = bytes[i];
      }
    }
  }
  const std::vector<std::string>& rows() const { return rows_; }

 private:
  size_t columns_, row_ = 0, column_ = 0;
  std::vector<std::string> rows_ = {""};
};

/// What `body` writes to a terminal of that size, in a process of its own.
std::string on_a_terminal(int columns, const std::function<void()>& body) {
  winsize size{.ws_row = 30, .ws_col = static_cast<unsigned short>(columns)};
  int terminal = -1;
  const pid_t child = forkpty(&terminal, nullptr, nullptr, &size);
  if (child == 0) {
    body();
    std::fflush(stdout);
    _exit(0);
  }
  std::string out;
  char buffer[4096];
  for (ssize_t n; (n = read(terminal, buffer, sizeof buffer)) > 0;) out.append(buffer, static_cast<size_t>(n));
  close(terminal);
  waitpid(child, nullptr, 0);
  return out;
}

void steps_with_a_warning() {
  Progress bar("sft", 4, "steps", /*quiet_s=*/0);
  for (int step = 1; step <= 3; ++step) {
    print_line(concat("line ", step));
    if (step == 2) {
      // As another process or the log does: begins where the cursor rests, knows of no bar, is longer than one.
      const std::string warning = "W20250101 00:00:00.000000 12345 some_file.cpp:123] [rank 1] something is odd\n";
      EXPECT_EQ(write(STDOUT_FILENO, warning.data(), warning.size()), static_cast<ssize_t>(warning.size()));
    }
    usleep(120'000);  // longer than the time between two bars
    bar.update(step, "loss 1.5", 60);
  }
}

TEST(Progress, LinesStandAboveTheBarAndNothingIsTorn) {
  const std::string bytes = on_a_terminal(100, steps_with_a_warning);
  Screen screen(100);
  screen.write(bytes);
  const std::vector<std::string> want = {
      "line 1", "line 2", "W20250101 00:00:00.000000 12345 some_file.cpp:123] [rank 1] something is odd", "line 3", ""};
  EXPECT_EQ(screen.rows(), want) << "at the end the bar is gone";
  Screen before(100);
  before.write(bytes.substr(0, bytes.rfind("\r\033[J")));
  EXPECT_EQ(before.rows().back().substr(0, 5), "sft [");
}

TEST(Progress, OnANarrowTerminalTheBarNeverWraps) {
  const std::string bytes = on_a_terminal(40, [] {
    Progress bar("a_stage_with_a_long_name", 4000, "steps", 0);
    for (int step = 1; step <= 3; ++step) {
      usleep(120'000);
      bar.update(step, "loss 1.5", 4000);
    }
  });
  Screen screen(40);
  screen.write(bytes.substr(0, bytes.rfind("\r\033[J")));
  EXPECT_EQ(screen.rows().size(), 1u);
}

TEST(Progress, ColourIsOffUnlessItIsAskedFor) {
  const auto paint = [] { print_line("good", Tone::kGood); };
  EXPECT_EQ(on_a_terminal(80, paint), "good\r\n");
  const std::string painted = on_a_terminal(80, [&] {
    use_terminal({.colour = true});
    paint();
  });
  EXPECT_EQ(painted, "\033[32mgood\033[0m\r\n");
}

TEST(Progress, ATerminalThatTakesPlainLinesOnlyGetsThem) {
  const std::string bytes = on_a_terminal(80, [] {
    use_terminal({.bar = false});
    Progress bar("sft", 4, "steps", 0);
    bar.update(1);
    print_line("x");
  });
  EXPECT_EQ(bytes, "sft 1/4 steps\r\nx\r\n");
}

}  // namespace
}  // namespace hanok
