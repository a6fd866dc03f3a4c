// Host memory that a GPU copies to and from by itself. Two implementations: pin.cpp, and absent.cpp in builds without
// nvcc.
#pragma once

#include <string>

#include "base/tensor.h"

namespace hanok {

/// Pins whole pages, for copies of `device`; from any thread. One copy must not reach from what one call pinned into
/// what another one did: the driver refuses that. -> empty, or why they were not pinned: copies then go through the
/// driver's own memory, while the host waits
std::string pin_host_memory(void* begin, size_t bytes, at::Device device);
/// Takes back one call of pin_host_memory; no copy may be under way. -> empty, or why it could not
std::string unpin_host_memory(void* begin, at::Device device);

}  // namespace hanok
