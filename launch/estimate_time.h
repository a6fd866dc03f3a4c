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

struct TimedStage {
  const RunConfig& config;
  const StageConfig& stage;
  const Groups& groups;  // of one stage that holds the whole model: `shape` says how it is cut
  PipelineShape shape;
  const ParamTable& params;
  StepLoad load;
  int64_t micro_batches = 1;  // of a rank
  at::ScalarType dtype = at::kFloat;
  KernelSet kernels;
  ActivationBytes without, kept;  // of a rank that held all layers: without recomputation, and as configured
  double shard = 0, expert_shard = 0, trained = 0;  // elements of a rank: of its optimizer, and of its gradients
};
Estimate::Seconds seconds_of(const TimedStage& timed, const GpuConfig& gpu);

/// How long a pipeline takes whose pieces take these seconds for one micro-batch, `passing` seconds from one to the
/// next.
struct PieceSeconds {
  double forward = 0, backward_input = 0, backward_weight = 0;
  double all() const { return forward + backward_input + backward_weight; }
};
double pipeline_span(const PipelineShape& shape,
                     int micro_batches,
                     const std::vector<PieceSeconds>& pieces,
                     double passing);

}  // namespace hanok
