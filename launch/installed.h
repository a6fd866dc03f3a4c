// The files that come with the program.
#pragma once

#include <vector>

#include "configs/schema/gpu.h"

namespace hanok {

/// The kinds of GPU in configs/gpu: of the working directory, else of the checkout or the installation that holds this
/// executable.
/// errors: kIo with the places that were looked at; as read_gpus
std::vector<GpuConfig> known_gpus();

}  // namespace hanok
