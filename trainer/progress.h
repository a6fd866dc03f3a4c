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

/// Prints a line without breaking a bar.
void print_line(const std::string& text);
/// Whether people read standard output on a terminal as it appears.
bool on_terminal();
double now_s();  // monotonic
/// "0:07", "12:34", "3:04:05", "2d 03:04".
std::string duration_text(double seconds);
/// "950", "12.3k", "4.56M", "7.89G": three digits.
std::string short_number(double value);
/// The same before a unit: "12.3 ktok/s", "4.56 TFLOP/s".
std::string short_number(double value, const std::string& unit);
/// A number through a printf format of one double, with text around it if wished.
std::string printed(const char* format, double value);

}  // namespace hanok
