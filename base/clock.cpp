#include "base/clock.h"

#include <chrono>
#include <ctime>

namespace hanok {
namespace {

template <typename Clock>
double seconds_of() {
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace

double now_s() {
  return seconds_of<std::chrono::steady_clock>();
}

double wall_s() {
  return seconds_of<std::chrono::system_clock>();
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace hanok
