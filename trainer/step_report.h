// What ranks tell each other after a step, and the line of metrics made of it.
#pragma once

#include <vector>

#include "model/cost.h"
#include "trainer/metrics.h"
#include "trainer/step.h"

namespace hanok {

/// One rank's numbers of one step.
struct StepReport {
  bool stop_requested = false;
  Work work;  // of this rank's micro-batches
  double step_s = 0, data_wait_s = 0, memory_gib = 0, memory_peak_gib = 0;
};
/// The same, of all ranks: a stop if any rank wants one; work summed, each token once; the longest times and the
/// largest memory. One small all-gather over the control group. Collective.
StepReport share_report(const StepReport& own, const Groups& groups);

/// Tokens, pairs and patches of micro-batches, padding left out.
Work work_of(const std::vector<Batch>& batches);
/// Of this process: allocated device memory, or resident host memory. Now and at most so far.
struct Memory {
  double now_gib = 0, peak_gib = 0;
};
Memory memory_in_use(at::Device device);

}  // namespace hanok
