// One optimizer step.
#pragma once

#include <vector>

#include "configs/schema/config.h"
#include "parallel/grad_sync.h"
#include "parallel/pass_times.h"
#include "trainer/input_copies.h"
#include "trainer/model_input.h"
#include "trainer/objective.h"
#include "trainer/optimizer.h"

namespace hanok {

/// What learns: the model, where its gradients go, and what they do.
struct Learner {
  const StageConfig& stage;
  Vlm& model;
  GradSync& grads;
  AdamW& optimizer;
  Objective& objective;
  InputCopies* copies = nullptr;  // brings micro-batches ahead of their use; null: where they are used
};

struct StepResult {
  Tensor loss;       // global weighted mean, scalar f64 on the device, equal on every rank
  Tensor grad_norm;  // before clipping, f32
  // Of models with experts (model/layers/routing.h), equal on every rank; undefined without.
  Tensor aux_loss;      // f64 scalar: the balancing loss before its coefficient; not in `loss`
  Tensor assigned_LE;   // int64: tokens that each expert of each layer was sent, padding left out
  Tensor applied;       // bool scalar; false: loss or norm was not finite, or no rank had a label; nothing changed
  Tensor has_pictures;  // bool scalar; false: what only pictures reach stayed as it was
};

/// Weight of all ranks first, then forward and backward of each micro-batch, gradient sum, clipping, update. Ranks may
/// have different numbers of micro-batches; those of one tp, cp, pp, ep or etp group have the same. Does not wait for
/// the device. `times`: notes what passes take.
StepResult run_step(Learner& learner, const std::vector<Batch>& batches, double lr, PassTimes* times = nullptr);

}  // namespace hanok
