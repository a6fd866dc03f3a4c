// What a plan says of a stage, beside what was measured.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "configs/schema/config.h"
#include "model/balance.h"
#include "model/cost.h"
#include "parallel/groups.h"

namespace hanok {

struct Prediction {
  double step_s = 0;
  std::vector<double> peak_gib;  // device memory allocated at most on a rank, by stage of the pipeline
};
/// Of a stage of the model as it was read, whose steps hold `work` in the mean over all ranks.
using Predict = std::function<std::optional<Prediction>(const ModelConfig&, const StageConfig&, const Work& work)>;

/// Seconds of a micro-batch in each sublayer of such a stage, by which a pipeline is dealt its layers; nothing where
/// the device's rates are not known.
using TimeSublayers =
    std::function<std::optional<SublayerCosts>(const ModelConfig&, const StageConfig&, const Work& work)>;

/// What the steps of one stage took, as every rank knows it.
struct StageMeasures {
  std::vector<double> step_s;
  Work work;  // of all steps, all ranks
};

/// Fields of a line of metrics.jsonl, documented in trainer/README.md.
struct StageComparison {
  std::string stage;
  int64_t step = 0;
  double step_s = 0, step_s_planned = 0;           // median, the first two steps left out where there are more
  double tokens_per_s = 0, model_flops_per_s = 0;  // of that step, all ranks
  std::vector<double> peak_gib, peak_gib_planned;  // by rank
};
/// "stage all beside its plan: step 1.300 s, planned 1.234 s (-5.1 %); most memory by rank 90.8 (planned ...": one
/// line.
std::string text_of(const StageComparison& comparison);

/// Collective over groups.control. Nothing where nothing was predicted or no step was done.
std::optional<StageComparison> compare_with_plan(const StageMeasures& measures,
                                                 const std::optional<Prediction>& prediction,
                                                 double own_peak_gib,
                                                 const Groups& groups);

}  // namespace hanok
