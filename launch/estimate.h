// What a stage takes on one rank of a layout: bytes by kind, FLOPs, time. Pure arithmetic on a model without memory.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "configs/schema/gpu.h"
#include "model/activations.h"
#include "model/balance.h"
#include "model/cost.h"
#include "model/vlm.h"

namespace hanok {

/// What a plan must suppose, for it reads no data: rows are full, each is one sample, and this share of its tokens
/// comes from pictures of this many patches; every other token has a label.
struct Supposed {
  double picture_share = 0;
  int64_t patches_per_picture = 0;
  double label_share = 1;    // of the tokens that are not of pictures
  double sample_tokens = 0;  // of a sample; 0: a row
  double fill = 1;           // real tokens of a row
};
/// Half of the tokens where the model has a tower, 1,024 patches a picture or what data.max_pixels allows.
Supposed supposed_by_default(const RunConfig& config);
/// What a step that was done has shown.
Supposed supposed_of(const RunConfig& config, const StageConfig& stage, const Work& step);

/// One named amount of a report.
struct Amount {
  std::string name;
  double bytes = 0;
};

struct Estimate {
  MeshShape mesh;
  at::ScalarType dtype = at::kFloat;
  std::string attention;                 // kernels that the plan reckons with
  double parameters = 0, trainable = 0;  // of the whole model
  double active = 0;                     // of them, that one token meets: fewer where there are experts
  double tokens_per_step = 0;            // over all ranks
  int64_t micro_batches = 0;             // of a rank in a step
  std::vector<Amount> always;            // held during the whole step
  std::vector<Amount> kept;              // activations from forward to backward
  std::vector<Amount> passing;           // one at a time, on top
  double peak_bytes = 0;                 // the most at any time of a step
  double allowance_bytes = 0;            // of it, what libtorch does not allocate
  double on_host_bytes = 0;              // offloaded activations
  FlopsByPart flops;                     // of one step, all ranks
  /// On the rank that works longest. Waiting is for other stages; data_parallel is what no computation hides of what
  /// travels.
  struct Seconds {
    double matrices = 0, attention = 0, memory = 0, optimizer = 0, tensor_parallel = 0, context_parallel = 0,
           expert_parallel = 0, offload = 0, data_parallel = 0, pipeline = 0;
    double gradients_travel = 0, weights_travel = 0;  // not in total()
    double total() const {
      return matrices + attention + memory + optimizer + tensor_parallel + context_parallel + expert_parallel +
             offload + data_parallel + pipeline;
    }
  };
  std::optional<Seconds> seconds;  // of one step, where the device's rates are known
  double tokens_per_s() const { return seconds ? tokens_per_step / seconds->total() : 0; }
  double always_bytes() const;
  struct Stage {
    double layers = 0;
    double parameters = 0, always = 0, kept = 0, peak = 0;  // of this rank; `kept`: of one micro-batch
    double live = 1;                                        // micro-batches held at once, whole ones
  };
  std::vector<Stage> stages;  // of a pipeline, by rank of pp; the bytes above are those of the largest
};

/// The stage with the layers of its pipeline as training would deal them, were its rows so: by seconds on this kind of
/// GPU; null: by FLOPs. errors: kConfig as the registry and freeze() say
StageConfig with_balanced_pipeline(const RunConfig& config,
                                   const StageConfig& stage,
                                   const Supposed& supposed,
                                   const GpuConfig* gpu);

/// The model of a layout on the meta device, with the stage's frozen weights marked: what shapes and cuts are asked of.
struct PlannedModel {
  Groups groups;
  std::unique_ptr<Vlm> model;
};
/// `layout`: dp of 0 stands for 1; a pipeline without pp_layers is cut evenly. `pp_stage`: whose part of a pipeline.
/// `gpu` null: a CPU. errors: kConfig as the registry, the plan and freeze() say
PlannedModel plan_model(const RunConfig& config,
                        const StageConfig& stage,
                        const ParallelConfig& layout,
                        const GpuConfig* gpu,
                        int pp_stage = 0);

/// On a pipeline: of every stage, `planned` being the first.
Estimate estimate(const RunConfig& config,
                  const StageConfig& stage,
                  const PlannedModel& planned,
                  const Supposed& supposed,
                  const GpuConfig* gpu);

/// The time of a stage whose layers lie on the ranks of a pipeline of this shape. `unpiped`: all of the model on the
/// other axes of the layout.
Estimate::Seconds step_seconds(const RunConfig& config,
                               const StageConfig& stage,
                               const PlannedModel& unpiped,
                               const PipelineShape& shape,
                               const Supposed& supposed,
                               const GpuConfig& gpu);

/// Seconds of a micro-batch in the sublayers of such a stage, whatever its pipeline.
SublayerCosts sublayer_seconds(const RunConfig& config,
                               const StageConfig& stage,
                               const Supposed& supposed,
                               const GpuConfig& gpu);

/// Bytes of weights, gradients and optimizer state as GradSync and AdamW allocate them on one rank.
double weight_bytes(const ParamTable& params, const Groups& groups);
double gradient_bytes(const ParamTable& params, const Groups& groups, const OptimizerConfig& config);
double optimizer_bytes(const ParamTable& params, const Groups& groups);

/// Whether the peak stays below the memory of the GPU.
bool fits(const Estimate& estimate, const GpuConfig& gpu);

/// Settings, as `--set` takes them, with which the stage fits the GPU: at most three, the fastest first.
struct Suggestion {
  std::vector<std::string> sets;
  int world = 1;
  Estimate estimate;
};
std::vector<Suggestion> suggest(const RunConfig& config,
                                const StageConfig& stage,
                                const ParallelConfig& layout,
                                const Supposed& supposed,
                                const GpuConfig& gpu);

}  // namespace hanok
