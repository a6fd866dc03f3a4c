#include "base/error.h"
#include "trainer/host_memory.h"
#include "trainer/progress.h"
#include "trainer/weights.h"

namespace hanok {

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
  const double present = host_memory().total_bytes;
  HANOK_REQUIRE(needed <= present, kDevice)
      << "memory: got " << printed("%.1f", present / kGiB) << " GiB on this machine, expected "
      << printed("%.1f", needed / kGiB) << " GiB for the weights of one rank alone; "
      << (config.path.empty() ? "model" : config.path)
      << "; take a smaller model, raise parallel.tp or parallel.pp, or spread the ranks over more machines (trainer plan shows the "
         "sizes of any layout)";
}

}  // namespace hanok
