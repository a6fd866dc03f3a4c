// A GPU that refuses an allocation: what held its memory, and settings that would fit.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "launch/device.h"
#include "trainer/run_stages.h"

namespace hanok {

/// "GPU memory: got ..., expected ...; by kind; where; settings": `settings` as `--set` takes them, one way each.
std::string out_of_memory_text(const RefusedAllocation& refused,
                               const std::vector<HeldBytes>& held,
                               const std::string& where,
                               const std::vector<std::string>& settings);

/// At most three ways by the plan, the fastest first. What the plan reckons the present ones to take was not there, so
/// each takes clearly less. Nothing where the stage cannot be planned.
std::vector<std::string> settings_that_fit(const RunConfig& config,
                                           const StageConfig& stage,
                                           const RefusedAllocation& refused,
                                           const std::string& gpu_name,
                                           int world_size);

/// For RunOptions: the text for the last allocation that this rank's GPU refused.
ExplainRefusal explain_refusal(const RunConfig& config, at::Device device, int rank, int world_size);

}  // namespace hanok
