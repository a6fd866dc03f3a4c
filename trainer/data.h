// Configured datasets -> what the loop reads: packing on first use, samplers, loaders.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "configs/schema/config.h"
#include "dataio/loader.h"
#include "dataio/pack.h"
#include "parallel/groups.h"

namespace hanok {

/// Tokenizer, chat template and picture rules of the configured model. errors: kData, kConfig
SampleEncoder make_encoder(const RunConfig& config);

/// Packs every dataset that is not packed yet (rank 0 of each host; the others wait), with a progress bar, and opens
/// them all.
std::map<std::string, std::shared_ptr<const Dataset>> open_datasets(const RunConfig& config,
                                                                    const SampleEncoder& encoder,
                                                                    const Groups& groups);

struct StageData {
  std::vector<std::shared_ptr<const Dataset>> datasets;  // of the mixture, by name
  std::shared_ptr<const Sampler> sampler;
  Loader::Options options;
  int64_t num_steps = 0;  // from steps, tokens or epochs
};
/// errors: kData if no sample fits into seq_len; too long ones are counted and named
StageData make_stage_data(const RunConfig& config,
                          const StageConfig& stage,
                          const std::map<std::string, std::shared_ptr<const Dataset>>& datasets,
                          const VisionPrep& vision,
                          const Groups& groups);

}  // namespace hanok
