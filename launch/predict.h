#pragma once

#include "trainer/prediction.h"

namespace hanok {

/// What `plan` says of stages of this run on the kind of GPU of this rank, among `world` ranks; empty on a CPU, or a
/// kind that configs/gpu does not have.
struct Planner {
  Predict predict = {};
  TimeSublayers time_sublayers = {};
};
Planner planner_of(const RunConfig& config, at::Device device, int world);

}  // namespace hanok
