// A run: its stages in order, each on its own layout and from the last one's weights.
#pragma once

#include <functional>
#include <string>

#include "configs/schema/config.h"
#include "parallel/groups.h"
#include "trainer/memory_held.h"
#include "trainer/prediction.h"
#include "trainer/train_loop.h"
#include "trainer/weights.h"

namespace hanok {

struct RunOptions {
  std::string resume = "auto";                                  // auto, never, or the path of a checkpoint
  std::function<bool()> stop_requested = [] { return false; };  // while data is packed too
  std::string versions = {};                                    // of the program and its libraries, for the report
  bool settles_late = false;          // on CPUs too, for tests: what a step did is told when the next one is under way
  Predict predict = {};               // asked at the end of a stage; empty: nothing to compare with
  TimeSublayers time_sublayers = {};  // asked where a pipeline is dealt its layers; empty: by FLOPs
  ExplainRefusal explain_refusal = {};  // where a GPU has too little memory; empty: libtorch's own words
};
struct RunResult {
  StageEnd end = StageEnd::kFinished;
  std::string last_checkpoint, model_folder;
};
/// Takes the run folder, finds where to go on, and runs what is left: weights by seed, from model.path, from the stage
/// before, or from the middle of a stage. Exports at the end. What had ended is not done again. Collective over
/// `world`. errors: kConfig when a resumed run would train something else (another model, seed or other data; each
/// difference is named; differences that are allowed are WARNINGs), or when `out` holds a config.yaml that no run
/// wrote; kIo or kConfig before the first step where the export could not take the place of OUT/model; Stopped
/// (trainer/data.h) when it is asked to stop while it packs; and as the rooms it calls
RunResult run_stages(const RunConfig& config, World& world, at::Device device, const RunOptions& options);

/// Mesh of the layout on all ranks of `world`, and its groups. errors: kConfig if they do not fit
Groups make_stage_groups(const ParallelConfig& layout, World& world);
/// auto: bfloat16 on GPUs that have it, else float32.
at::ScalarType model_dtype(const ModelConfig& model, at::Device device);
/// Folders that side files come from.
ExportOptions export_sources(const RunConfig& config);
/// The same, and the template's text where there is no folder to copy.
ExportOptions export_options(const RunConfig& config);
/// How `eval.set` is measured with the rows and weights of a stage; dump, submission and progress are the caller's.
EvalOptions evaluation_options(const RunConfig& config,
                               const StageConfig& stage,
                               const SampleEncoder& encoder,
                               const Groups& groups);
/// model/balance.h for the stage: what its products cost for `work`. errors: kConfig as the registry and freeze() say
SublayerCosts sublayer_flops(const ModelConfig& model, const Work& work, const StageConfig& stage);

}  // namespace hanok
