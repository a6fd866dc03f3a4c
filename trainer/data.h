// Configured datasets -> what the loop reads: packing on first use, samplers, loaders.
#pragma once

#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "configs/schema/config.h"
#include "dataio/loader.h"
#include "dataio/pack.h"
#include "model/cost.h"
#include "parallel/groups.h"

namespace hanok {

/// Tokenizer, chat template and picture rules of the configured model (read_model_folder first). The template is the
/// tokenizer folder's, else the model folder's, unless data.chat_template names one. errors: kData, kConfig
SampleEncoder make_encoder(const RunConfig& config);
/// The chat template alone.
std::shared_ptr<const ChatTemplate> chat_template_of(const RunConfig& config);
/// The picture rules alone: of model.path (else the tokenizer folder), with the model's patches and data.*_pixels.
VisionPrep vision_prep_of(const RunConfig& config);

/// Thrown on every rank where a wish to stop is obeyed and nothing is left to save: this is no failure. Work that could
/// not be called off may still be under way in a thread: the process must end by _exit().
struct Stopped : std::exception {
  const char* what() const noexcept override { return "stopped on request"; }
};

/// Names of the datasets of the stages and eval.set. errors: kConfig
std::set<std::string> used_sets(const RunConfig& config);

/// pack_dataset() of data.sets.NAME on the ranks that `packs` says, with a progress bar; the others wait. -> the report
/// of this rank, if it packs. Collective. errors, on every rank: kData, kIo; Stopped within seconds of a wish to stop
/// (what is packed so far is kept, the next call goes on)
PackReport pack_together(const std::string& name,
                         const RunConfig& config,
                         const SampleEncoder& encoder,
                         Comm& control,
                         bool packs,
                         const std::function<bool()>& stop_requested);

/// Packs the datasets of the stages and of eval.set that are not packed yet, with a progress bar, and opens them. World
/// rank 0 packs; then the first rank of every other host, which finds the files where the cache is shared. Collective.
/// errors, on every rank: as pack_together()
std::map<std::string, std::shared_ptr<const Dataset>> open_datasets(const RunConfig& config,
                                                                    const SampleEncoder& encoder,
                                                                    const Groups& groups,
                                                                    const std::function<bool()>& stop_requested = {});

struct StageData {
  std::vector<std::shared_ptr<const Dataset>> datasets;  // of the mixture, by name
  std::shared_ptr<const Sampler> sampler;
  Loader::Options options;
  int64_t num_steps = 0;  // from steps, tokens (as the first steps hold them) or epochs
};
/// Of a step, judged by the first rows of the stage, as many as hold a few dozen samples. errors: kData as
/// Dataset::read()
Work work_of_first_rows(const StageData& data);
/// What the layout cuts the tokens of a micro-batch by.
int64_t pad_multiple_of(const Groups& groups);
/// Names of the datasets that a stage learns from: its mixture, or else every dataset but eval.set.
std::vector<std::string> mixture_of(const RunConfig& config, const StageConfig& stage);
/// errors: kData if no sample fits into seq_len; too long ones are counted and named
StageData make_stage_data(const RunConfig& config,
                          const StageConfig& stage,
                          const std::map<std::string, std::shared_ptr<const Dataset>>& datasets,
                          const VisionPrep& vision,
                          const Groups& groups);

}  // namespace hanok
