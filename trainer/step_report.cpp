#include "trainer/step_report.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace hanok {

StepReport share_report(const StepReport& own, const Groups& groups) {
  // Ranks of tp, cp and pp hold the same samples: the first of them speaks for all.
  const double speaks = groups.tp->rank() == 0 && groups.cp->rank() == 0 && groups.pp->rank() == 0 ? 1 : 0;
  const Work& w = own.work;
  const std::vector<double> numbers = {own.stop_requested ? 1.0 : 0.0,
                                       own.step_s,
                                       own.data_wait_s,
                                       own.memory_gib,
                                       own.memory_peak_gib,
                                       speaks * w.tokens,
                                       speaks * w.labels,
                                       speaks * w.token_pairs,
                                       speaks * w.patches,
                                       speaks * w.patch_pairs};
  const auto size = static_cast<int64_t>(numbers.size());
  const Tensor shard = at::tensor(numbers, at::kDouble);
  Tensor all = at::empty({groups.control->size() * size}, at::kDouble);
  groups.control->all_gather(all, shard);
  const Tensor table = all.view({-1, size});
  const Tensor most = std::get<0>(table.max(0)), sum = table.sum(0);
  const auto* m = most.const_data_ptr<double>();
  const auto* s = sum.const_data_ptr<double>();
  return {.stop_requested = m[0] > 0,
          .work = {.tokens = s[5], .labels = s[6], .token_pairs = s[7], .patches = s[8], .patch_pairs = s[9]},
          .step_s = m[1],
          .data_wait_s = m[2],
          .memory_gib = m[3],
          .memory_peak_gib = m[4]};
}

Work work_of(const std::vector<Batch>& batches) {
  Work work;
  for (const Batch& batch : batches) {
    work.tokens += static_cast<double>(batch.num_tokens);
    work.labels += static_cast<double>(batch.num_labels);
    for (const PlacedSample& sample : batch.samples) {
      const auto length = static_cast<double>(sample.end - sample.begin);
      work.token_pairs += length * length;
    }
    const auto grid = batch.grid_I3.accessor<int64_t, 2>();
    for (int64_t i = 0; i < grid.size(0); ++i) work.add_frames(grid[i][0], grid[i][1], grid[i][2]);
  }
  return work;
}

Memory memory_in_use(at::Device device) {
  constexpr double kGib = 1 << 30;
  if (device.is_cpu()) {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const double peak = static_cast<double>(usage.ru_maxrss) * 1024 / kGib;
    double pages = 0, resident = 0;
    if (!(std::ifstream("/proc/self/statm") >> pages >> resident)) return {peak, peak};
    const double now = resident * static_cast<double>(sysconf(_SC_PAGESIZE)) / kGib;
    return {now, std::max(now, peak)};
  }
  const auto allocated = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index()).allocated_bytes[0];
  return {static_cast<double>(allocated.current) / kGib, static_cast<double>(allocated.peak) / kGib};
}

}  // namespace hanok
