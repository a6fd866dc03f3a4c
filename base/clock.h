// What time it is.
#pragma once

#include <string>

namespace hanok {

double now_s();         // monotonic
double wall_s();        // since 1970
std::string utc_now();  // "2026-11-22T15:58:35Z"

}  // namespace hanok
