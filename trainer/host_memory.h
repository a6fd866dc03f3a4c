// Memory of this host. Private to trainer/.
#pragma once

#include <string>

namespace hanok {

struct HostMemory {
  double total_bytes = 0;      // of the machine, or the least limit of this process's control groups
  double available_bytes = 0;  // that can still be taken: what caches of files hold counts as free
};

/// `root`: where /proc and /sys lie, for tests.
HostMemory host_memory(const std::string& root = "");

}  // namespace hanok
