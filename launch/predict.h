#pragma once

#include "trainer/prediction.h"

namespace hanok {

/// What `plan` says of stages of this run on the kind of GPU of this rank, among `world` ranks; empty on a CPU, or a
/// kind that configs/gpu does not have.
Predict predictor(const RunConfig& config, at::Device device, int world);
/// The same of the time that its sublayers take.
TimeSublayers sublayer_timer(const RunConfig& config, at::Device device, int world);

}  // namespace hanok
