#include "trainer/host_memory.h"

#include <ATen/Parallel.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/vfs.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <vector>

#include "base/error.h"
#include "trainer/progress.h"

namespace hanok {
namespace {

/// The number after each of `keys` in lines of "key number", added up.
double sum_of(const std::string& file, const std::vector<std::string>& keys) {
  std::ifstream in(file);
  std::string line, key;
  double sum = 0;
  while (std::getline(in, line)) {
    double value = 0;
    std::istringstream words(line);
    if (words >> key >> value && std::find(keys.begin(), keys.end(), key) != keys.end()) sum += value;
  }
  return sum;
}

/// How the two versions of control groups call the same things.
struct GroupFiles {
  std::string folder;
  const char *limit, *used;
  std::vector<std::string> reclaimable;  // keys of memory.stat
};
const std::vector<GroupFiles>& group_files() {
  static const std::vector<GroupFiles> list = {
      {"/sys/fs/cgroup", "/memory.max", "/memory.current", {"active_file", "inactive_file", "slab_reclaimable"}},
      {"/sys/fs/cgroup/memory",
       "/memory.limit_in_bytes",
       "/memory.usage_in_bytes",
       {"total_active_file", "total_inactive_file"}}};
  return list;
}

/// The paths of this process's groups below any such folder, "" for the root, which is all that a container shows.
std::vector<std::string> group_paths(const std::string& root) {
  std::vector<std::string> paths = {""};
  std::ifstream in(root + "/proc/self/cgroup");
  std::string line;
  while (std::getline(in, line)) {  // "4:memory:/a/b", "0::/a/b"
    const size_t path = line.find(":/");
    if (path == std::string::npos) continue;
    for (std::string at = line.substr(path + 1); at.size() > 1; at.resize(std::max(at.rfind('/'), size_t{0})))
      if (std::find(paths.begin(), paths.end(), at) == paths.end()) paths.push_back(at);
  }
  return paths;
}

}  // namespace

HostMemory host_memory(const std::string& root) {
  constexpr double kKiB = 1024;
  const std::string facts = root + "/proc/meminfo";
  HostMemory memory{.total_bytes = kKiB * sum_of(facts, {"MemTotal:"}),
                    .available_bytes = kKiB * sum_of(facts, {"MemAvailable:"})};
  for (const GroupFiles& files : group_files()) {
    for (const std::string& path : group_paths(root)) {
      const std::string group = root + files.folder + path;
      double limit = 0, used = 0;
      if (!(std::ifstream(group + files.limit) >> limit) || limit <= 0) continue;  // "max": none
      memory.total_bytes = std::min(memory.total_bytes, limit);
      if (!(std::ifstream(group + files.used) >> used)) continue;
      const double kept = used - sum_of(group + "/memory.stat", files.reclaimable);
      memory.available_bytes = std::clamp(limit - kept, 0.0, memory.available_bytes);
    }
  }
  return memory;
}

int helping_threads() {
  constexpr int kMost = 8;  // more are not faster
  cpu_set_t cores;
  const int allowed = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : kMost;
  return std::clamp(std::min(allowed, at::get_num_threads()), 1, kMost);
}

void require_memory_for_files(const std::string& folder, double bytes, double available_bytes, bool is_copied) {
  struct statfs system {};
  if (::statfs(folder.c_str(), &system) != 0 || (system.f_type != TMPFS_MAGIC && system.f_type != RAMFS_MAGIC)) return;
  constexpr double kGB = 1e9;
  HANOK_REQUIRE(bytes <= available_bytes, kIo)
      << "folder in memory: got " << printed("%.2f GB", available_bytes / kGB) << " of memory available, expected "
      << printed("%.2f GB", bytes / kGB) << " for the files; " << folder << "; take a folder on a disk"
      << (is_copied ? ", or save.background=false, which needs no copy in memory" : "");
}

}  // namespace hanok
