// What a model needs of the memory that a rank computes in, before it is asked for.
#pragma once

#include "model/vlm.h"

namespace hanok {

/// Host only: an allocation that is too large succeeds there, and the kernel kills the process when it is written to.
/// errors: kDevice if this rank's weights alone are more than the machine has, or more than its container may use
void require_room_for_weights(const ModelConfig& config, const Groups& groups, at::ScalarType dtype, at::Device device);

}  // namespace hanok
