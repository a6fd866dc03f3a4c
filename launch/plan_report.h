// What `plan` found out, as text for people and as JSON for programs.
#pragma once

#include <string>
#include <vector>

#include "launch/estimate.h"

namespace hanok {

struct GpuVerdict {
  const GpuConfig* gpu = nullptr;
  Estimate estimate;                    // on that GPU: its dtype and kernels
  std::vector<Suggestion> suggestions;  // where it does not fit
};

struct StagePlan {
  StageConfig stage;
  PlannedModel planned;
  Supposed supposed;
  Estimate estimate;
  std::vector<GpuVerdict> verdicts;
};

void print_text(const StagePlan& plan);
/// One JSON object for all stages.
std::string to_json(const RunConfig& config, const std::vector<StagePlan>& plans);
std::string human_bytes(double bytes);

}  // namespace hanok
