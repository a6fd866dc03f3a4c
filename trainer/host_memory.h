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

/// Threads that touch, read and copy for a rank: a share of the cores that it may use, and no more than help. Where
/// ranks are not bound to cores, libtorch's number of threads is the share.
int helping_threads();

/// Files of `bytes` in `folder` (which exists) must not take memory that this host has not: where the folder lies in
/// memory (tmpfs, ramfs), the kernel would end the job instead of refusing the files. `is_copied`: a copy in memory is
/// part of what is taken already, which a save without `save.background` would not need. errors: kIo
void require_memory_for_files(const std::string& folder, double bytes, double available_bytes, bool is_copied);

}  // namespace hanok
