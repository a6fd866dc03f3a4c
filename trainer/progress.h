// A one-line bar on a terminal; plain lines now and then elsewhere. All on standard output.
#pragma once

#include <cstdint>
#include <string>

namespace hanok {

class Progress {
 public:
  /// Nothing is shown before `quiet_s` seconds have passed, nor by ranks other than 0. `total` 0: unknown.
  Progress(std::string what, int64_t total, std::string unit, double quiet_s = 2);
  ~Progress();  // ends the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// `left_s`: seconds left as the caller knows them; negative: by the mean rate so far.
  void update(int64_t done, const std::string& note = "", double left_s = -1);

 private:
  std::string what_, unit_;
  int64_t total_, first_ = -1;  // `done` of the first update: a resumed run does not count what was done before it
  double quiet_s_, start_s_, shown_s_ = 0;
  bool is_terminal_, shown_ = false;
};

/// What the program was told of the terminal it may have; said once at the start, by launch/.
struct TerminalUse {
  bool bar = true;  // false: one that only takes plain lines (TERM=dumb)
  bool colour = false;
};
void use_terminal(TerminalUse use);

/// Whether people read standard output on a terminal that takes a bar, directly or through mpirun.
bool on_terminal();
/// Columns of that terminal now; 120 where it does not say.
int terminal_columns();
enum class Tone { kPlain, kGood, kWarning };
/// Prints a line without breaking a bar; coloured on a terminal that is used so.
void print_line(const std::string& text, Tone tone = Tone::kPlain);

/// "align [====    ] 3/10 steps, 0:05 left, loss 4.1" in at most `columns`: the bar takes what the text leaves, and
/// where there is little the note goes first, then the bar. `total` 0: no bar; `left_s` < 0: no time.
struct BarText {
  std::string what, unit, note;
  int64_t done = 0, total = 0;
  double left_s = -1;
};
std::string bar_line(const BarText& text, int columns);

/// "0:07", "12:34", "3:04:05", "2d 03:04".
std::string duration_text(double seconds);
/// "950", "12.3k", "4.56M", "7.89G": three digits.
std::string short_number(double value);
/// The same before a unit: "12.3 ktok/s", "4.56 TFLOP/s".
std::string short_number(double value, const std::string& unit);
/// A number through a printf format of one double, with text around it if wished.
std::string printed(const char* format, double value);

}  // namespace hanok
