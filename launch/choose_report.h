#pragma once

#include <string>
#include <vector>

#include "launch/choose_layout.h"

namespace hanok {

struct StageChoices {
  const StageConfig* stage = nullptr;
  LayoutChoices choices;
};
/// A table of the choices, the settings of the first, and why it is the first.
void print_text(
    const StageChoices& choices, const RunConfig& config, int gpus, const Supposed& supposed, const GpuConfig& gpu);
std::string to_json(const RunConfig& config, const std::vector<StageChoices>& stages);

}  // namespace hanok
