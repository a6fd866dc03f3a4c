// A one-line bar on a terminal; plain lines now and then elsewhere.
#pragma once

#include <cstdint>
#include <string>

namespace hanok {

class Progress {
 public:
  /// Nothing is shown before `quiet_s` seconds have passed, nor by ranks other than 0.
  Progress(std::string what, int64_t total, std::string unit, double quiet_s = 2);
  ~Progress();  // ends the line
  void update(int64_t done, const std::string& note = "");

 private:
  std::string what_, unit_;
  int64_t total_, done_ = 0;
  double quiet_s_, start_s_, shown_s_ = 0;
  bool is_terminal_, shown_ = false;
};

/// Prints a line without breaking a bar.
void print_line(const std::string& text);
double now_s();  // monotonic

}  // namespace hanok
