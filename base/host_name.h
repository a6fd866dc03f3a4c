#pragma once

#include <string>

namespace hanok {

/// Of the machine that this process runs on; containers have names of their own.
std::string host_name();

}  // namespace hanok
