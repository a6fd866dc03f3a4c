// Seconds of a step: every product at the rate that its sizes allow, everything else by the bytes it moves, and the
// order of a pipeline played through. Ceilings come from configs/gpu; nothing is fitted to a model.
#pragma once

#include "configs/schema/gpu.h"
#include "launch/estimate.h"

namespace hanok {

/// What a step asks of the ranks.
struct StepLoad {
  MicroBatch batch;  // of a rank
  Work work;         // of a step, all ranks, padding left out
  double fill = 1;   // real tokens / room
};
StepLoad load_of(const RunConfig& config, const StageConfig& stage, const Groups& groups, const Supposed& supposed);

/// Elements that a rank holds if it holds all layers: of its optimizer, dense weights and experts, and of its
/// gradients.
struct HeldElements {
  double shard = 0, expert_shard = 0, trained = 0;
};
HeldElements held_elements(const ParamTable& params, const Groups& groups);
KernelSet kernels_on(const RunConfig& config, const StageConfig& stage, const GpuConfig* gpu);
int64_t micro_batches_of(const StageConfig& stage, const MeshShape& mesh);
at::ScalarType dtype_on(const ModelConfig& model, const GpuConfig* gpu);

struct TimedStage {
  const RunConfig& config;
  const StageConfig& stage;
  const Groups& groups;  // of one stage that holds the whole model: `shape` says how it is cut
  PipelineShape shape;
  std::vector<Product> products;  // of a step, over all ranks
  StepLoad load;
  int64_t micro_batches = 1;  // of a rank
  at::ScalarType dtype = at::kFloat;
  KernelSet kernels;
  ActivationBytes without, kept;  // of a rank that held all layers: without recomputation, and as configured
  HeldElements held;
};
Estimate::Seconds seconds_of(const TimedStage& timed, const GpuConfig& gpu);
/// The same, were no stage of a pipeline to wait for another: never more.
Estimate::Seconds seconds_without_waiting(const TimedStage& timed, const GpuConfig& gpu);
/// Of a micro-batch; the shape and layers of a pipeline do not matter.
SublayerCosts sublayer_seconds(const TimedStage& timed, const GpuConfig& gpu);

}  // namespace hanok
