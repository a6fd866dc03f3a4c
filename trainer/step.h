// One optimizer step.
#pragma once

#include <vector>

#include "trainer/train_loop.h"

namespace hanok {

struct StepResult {
  Tensor loss;       // global weighted mean, scalar f32 on the device
  Tensor grad_norm;  // before clipping
  Tensor applied;    // bool scalar; false: loss or norm was not finite, nothing changed
  double lr = 0;
};

/// Weight of all ranks first, then forward and backward of each micro-batch, gradient sum, clipping, update.
StepResult run_step(Trainer& t, std::vector<Batch>& batches);

/// The tensors of a micro-batch on the model's device, without copies where they are there already.
ModelInput model_input(const Batch& batch, at::Device device);

}  // namespace hanok
