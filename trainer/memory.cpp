#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "base/error.h"
#include "trainer/progress.h"
#include "trainer/weights.h"

namespace hanok {
namespace {

/// Bytes that this process may use at most: the machine's memory, or the limit of its control group.
double host_memory_bytes() {
  double bytes = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  for (const char* file : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    double limit = 0;
    if (std::ifstream(file) >> limit && limit > 0) bytes = std::min(bytes, limit);
  }
  return bytes;
}

}  // namespace

void require_room_for_weights(const ModelConfig& config,
                              const Groups& groups,
                              at::ScalarType dtype,
                              at::Device device,
                              const ParallelConfig& layout) {
  if (!device.is_cpu()) return;
  const Vlm declared(config, groups, dtype, at::kMeta, layout);
  double needed = 0;
  for (const Param& param : declared.params())
    needed += static_cast<double>(param.value.numel()) * static_cast<double>(c10::elementSize(dtype));
  constexpr double kGiB = 1 << 30;
  const double present = host_memory_bytes();
  HANOK_REQUIRE(needed <= present, kDevice)
      << "memory: got " << printed("%.1f", present / kGiB) << " GiB on this machine, expected "
      << printed("%.1f", needed / kGiB) << " GiB for the weights of one rank alone; "
      << (config.path.empty() ? "model" : config.path)
      << "; take a smaller model, raise parallel.tp or parallel.pp, or spread the ranks over more machines (trainer plan shows the "
         "sizes of any layout)";
}

}  // namespace hanok
