// What a rank knows of its machine, as lines that ranks compare.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace hanok {

struct Fact {
  std::string name, value;
};

/// Versions, libraries as they were loaded, processor, memory, limits, shared memory, disk of the working folder.
std::vector<Fact> machine_facts(int threads_of_rank);
/// "name (64 KiB ... )" of every GPU and what its capability means; which of them read each other's memory.
std::vector<Fact> gpu_facts();

struct DiskSpeed {
  double write_mb_s = 0, read_mb_s = 0;
};
/// Writes and syncs up to 256 MiB, at most about a second, in the folder, reads them back from the disk, removes them.
/// errors: kIo
DiskSpeed disk_speed(const std::string& folder);
/// Why no file can be made in the folder; empty where one can.
std::string write_fault(const std::string& folder);
double free_gib(const std::string& folder);

}  // namespace hanok
