#include "trainer/step.h"

#include "trainer/clip.h"

namespace hanok {
namespace {

/// Sum of the label weights of the whole step, f64: known before the first forward, so that every micro-batch of every
/// rank divides by the same number and gradients only need to be summed.
Tensor global_weight(const Vlm& model, const std::vector<Batch>& batches) {
  double local = 0;
  for (const Batch& batch : batches) local += batch.weight_sum;
  Tensor weight = at::full({}, local, at::device(device_of(model)).dtype(at::kDouble));
  model.groups().loss->all_reduce(weight, Reduce::kSum);
  return weight;
}

}  // namespace

StepResult run_step(Learner& t, const std::vector<Batch>& batches, double lr) {
  const Groups& groups = t.model.groups();
  const Tensor weight = global_weight(t.model, batches);
  Tensor loss = at::zeros_like(weight);
  t.grads.start();
  for (const Batch& batch : batches) {
    if (batch.num_labels == 0) continue;  // only ranks of tp meet in a forward, and they see the same batch
    const ModelOutput y = t.model.forward(model_input(batch, device_of(t.model)));
    const Tensor part = t.objective.loss(t.model, y, batch) / weight;
    if (part.requires_grad()) part.backward();  // without a graph: what trains has no share in this batch
    loss += part.detach();
  }
  t.grads.finish();
  groups.loss->all_reduce(loss, Reduce::kSum);

  const Clip clip = clip_by_norm(t.grads, t.stage.optimizer.clip_norm);
  const Tensor applied = loss.isfinite().logical_and(clip.norm.isfinite()).logical_and(weight.gt(0));
  t.optimizer.step(clip.scale, applied, lr);
  return {loss, clip.norm, applied};
}

ModelInput model_input(const Batch& batch, at::Device device) {
  const auto moved = [&](const Tensor& host) { return host.to(device, /*non_blocking=*/true); };
  return {.tokens_T = moved(batch.tokens_T),
          .position_3T = moved(batch.position_3T),
          .row_starts = batch.row_starts,
          .pixels_PC = moved(batch.pixels_PC),
          .grid_I3 = batch.grid_I3,
          .vision_index_M = moved(batch.vision_index_M)};
}

at::Device device_of(const Vlm& model) {
  return model.params().front().value.device();
}

}  // namespace hanok
