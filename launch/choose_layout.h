// Which layout a plan would choose for so many GPUs of a kind.
#pragma once

#include "launch/estimate.h"

namespace hanok {

struct LayoutChoice {
  StageConfig stage;  // with its layout, dp included
  std::vector<std::string> sets;
  Estimate::Seconds seconds;
  double peak_bytes = 0;
  int64_t micro_batches = 0;
  std::string why;  // beside the first one
};
struct LayoutChoices {
  std::vector<LayoutChoice> best;    // the fastest first; empty: nothing fits
  int64_t allowed = 0, fitting = 0;  // combinations that the rules allow; of them, those looked at that fit
  bool looked_at_all = false;
  std::vector<std::string> refused;  // "pp7: why not", of plain layouts that the rules forbid
};
/// Every product of the axes that the config rules allow on `gpus` GPUs, schedules, rows of a micro-batch and ways to
/// recompute, by time; of the fastest, those that leave a twentieth of the memory free. Rows of a step, their length
/// and everything else stay as configured: the training is the same.
LayoutChoices choose_layouts(
    const RunConfig& config, const StageConfig& stage, int gpus, const Supposed& supposed, const GpuConfig& gpu);

}  // namespace hanok
