#include "trainer/step_report.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <sys/resource.h>

#include <algorithm>

namespace hanok {

StepReport share_report(const StepReport& own, const Groups& groups) {
  // Ranks of tp and cp hold the same samples: the first of them speaks for all.
  const double speaks = groups.tp->rank() == 0 && groups.cp->rank() == 0 ? 1 : 0;
  const Work& w = own.work;
  const std::vector<double> numbers = {own.stop_requested ? 1.0 : 0.0,
                                       own.step_s,
                                       own.data_wait_s,
                                       own.memory_gib,
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
          .work = {.tokens = s[4], .labels = s[5], .token_pairs = s[6], .patches = s[7], .patch_pairs = s[8]},
          .step_s = m[1],
          .data_wait_s = m[2],
          .memory_gib = m[3]};
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
    for (int64_t i = 0; i < grid.size(0); ++i) {
      const auto frame = static_cast<double>(grid[i][1] * grid[i][2]);
      work.patches += static_cast<double>(grid[i][0]) * frame;
      work.patch_pairs += static_cast<double>(grid[i][0]) * frame * frame;
    }
  }
  return work;
}

double peak_memory_gib(at::Device device) {
  constexpr double kGib = 1 << 30;
  if (device.is_cpu()) {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_maxrss) * 1024 / kGib;
  }
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return static_cast<double>(stats.allocated_bytes[0].peak) / kGib;
}

}  // namespace hanok
