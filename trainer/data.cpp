#include "trainer/data.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/host_name.h"
#include "base/log.h"
#include "parallel/init.h"
#include "trainer/agree.h"
#include "trainer/background.h"
#include "trainer/progress.h"
#include "trainer/side_files.h"

namespace hanok {
namespace {

/// Whether this rank is the lowest of its host. Collective.
bool is_first_of_host(Comm& control) {
  constexpr int64_t kBytes = 256;
  Tensor own = at::zeros({1, kBytes}, at::kByte), all = at::zeros({control.size(), kBytes}, at::kByte);
  const std::string name = host_name();
  std::copy(name.begin(), name.end(), static_cast<char*>(own.mutable_data_ptr()));
  control.all_gather(all, own);
  for (int rank = 0; rank < control.rank(); ++rank)
    if (at::equal(all[rank], own[0])) return false;
  return true;
}

PackReport pack_with_progress(const std::string& name,
                              const RunConfig& config,
                              const SampleEncoder& encoder,
                              const std::atomic<bool>& stop) {
  std::optional<Progress> progress;
  return pack_dataset(name, config.data.sets.at(name), config.data, encoder, [&](const PackProgress& p) {
    if (stop) throw Stopped();
    if (!progress) progress.emplace("packing " + name, p.total, "records");
    progress->update(p.done);
  });
}

void log_packed(const std::string& name, const PackReport& report) {
  if (!report.was_cached) {
    HANOK_LOG_RANK0(INFO) << "dataset " << name << ": " << report.num_samples << " samples, " << report.num_images
                          << " pictures, " << report.num_tokens << " tokens packed in " << duration_text(report.seconds)
                          << "; " << report.file;
  }
  if (report.bad.total() > 0) {
    std::string reasons;
    for (const auto& [reason, count] : report.bad.by_reason)
      reasons += concat(reasons.empty() ? "" : ", ", reason, " ", count);
    HANOK_LOG_RANK0(WARNING) << "dataset " << name << ": left out " << report.bad.total() << " of "
                             << report.num_records << " records (" << reasons << "); all are listed in "
                             << report.bad_list;
  }
}

/// Real tokens of one step, over the first steps.
double mean_tokens(const Sampler& sampler, const std::vector<std::shared_ptr<const Dataset>>& datasets) {
  constexpr int kSteps = 16;
  double tokens = 0;
  Cursor cursor;
  for (int i = 0; i < kSteps; ++i)
    for (const Row& row : sampler.next(cursor))
      for (const SampleRef& ref : row) tokens += static_cast<double>(datasets[ref.dataset]->num_tokens(ref.index));
  return tokens / kSteps;
}

int64_t steps_of(const StageConfig& stage,
                 const Sampler& sampler,
                 const std::vector<std::shared_ptr<const Dataset>>& datasets) {
  if (stage.steps > 0) return stage.steps;
  if (stage.epochs > 0) return std::max<int64_t>(1, sampler.steps_for_epochs(stage.epochs));
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(stage.tokens / mean_tokens(sampler, datasets))));
}

Work work_of(const Sample& sample) {
  const auto tokens = static_cast<double>(sample.tokens.size());
  Work work{.tokens = tokens, .labels = static_cast<double>(sample.num_label_tokens()), .token_pairs = tokens * tokens};
  for (const VisionItem& item : sample.vision) work.add_frames(item.t, item.h, item.w);
  return work;
}

std::string tokenizer_folder(const ModelConfig& model) {
  const std::string& folder = model.tokenizer.empty() ? model.path : model.tokenizer;
  HANOK_REQUIRE(!folder.empty(), kConfig) << "model.tokenizer: got none and no model.path, expected a folder with "
                                             "tokenizer.json or vocab.json and merges.txt";
  return folder;
}

}  // namespace

VisionPrep vision_prep_of(const RunConfig& config) {
  const ModelConfig& model = config.model;
  VisionPrep prep = vision_prep_from_folder(model.path.empty() ? model.tokenizer : model.path);
  if (model.tower.type != "none") {
    prep.patch = model.tower.patch;
    prep.temporal_patch = model.tower.temporal_patch;
    prep.merge = model.connector.merge;
  }
  if (config.data.min_pixels > 0) prep.min_pixels = config.data.min_pixels;
  if (config.data.max_pixels > 0) prep.max_pixels = config.data.max_pixels;
  HANOK_REQUIRE(prep.min_pixels <= prep.max_pixels, kConfig)
      << "data.min_pixels, data.max_pixels: got " << prep.min_pixels << " and " << prep.max_pixels
      << " together with the model folder's, expected the first to be at most the second; set both";
  return prep;
}

std::shared_ptr<const ChatTemplate> chat_template_of(const RunConfig& config) {
  const std::string folder = tokenizer_folder(config.model);
  const bool elsewhere =
      !has_chat_template(folder) && !config.model.path.empty() && has_chat_template(config.model.path);
  return chat_template_from_folder(elsewhere ? config.model.path : folder, config.data.chat_template);
}

SampleEncoder make_encoder(const RunConfig& config) {
  DataConfig data = config.data;
  data.chat_template = chat_template_of(config)->name();
  data.min_pixels = data.max_pixels = 0;  // limits belong to the picture rules, which need not be this folder's
  SampleEncoder encoder = sample_encoder(tokenizer_folder(config.model), config.model, data);
  encoder.vision = vision_prep_of(config);
  return encoder;
}

std::vector<std::string> mixture_of(const RunConfig& config, const StageConfig& stage) {
  std::vector<std::string> names;
  if (stage.mixture.empty()) {
    for (const auto& [name, set] : config.data.sets)
      if (name != config.eval.set) names.push_back(name);
  } else {
    for (const auto& [name, share] : stage.mixture) names.push_back(name);
  }
  HANOK_REQUIRE(!names.empty(), kConfig) << "data.sets: got only eval.set = " << config.eval.set
                                         << ", expected a dataset to train on; name it in stages." << stage.name
                                         << ".mixture to train on it all the same";
  return names;
}

std::set<std::string> used_sets(const RunConfig& config) {
  std::set<std::string> out;
  for (const StageConfig& stage : config.stages) {
    const auto names = mixture_of(config, stage);
    out.insert(names.begin(), names.end());
  }
  if (!config.eval.set.empty()) out.insert(config.eval.set);
  return out;
}

PackReport pack_together(const std::string& name,
                         const RunConfig& config,
                         const SampleEncoder& encoder,
                         Comm& control,
                         bool packs,
                         const std::function<bool()>& stop_requested) {
  // The task may outlive this call when another rank fails, or when it does not stop in time: it owns all it touches.
  struct Shared {
    PackReport report;
    std::atomic<bool> stop{false};
  };
  const auto shared = std::make_shared<Shared>();
  const auto pack = [shared, name, config, encoder] {
    try {
      shared->report = pack_with_progress(name, config, encoder, shared->stop);
    } catch (const Stopped&) {  // run_apart() knows that it was asked for
    }
  };
  const bool is_over = run_apart(packs ? std::function<void()>(pack) : nullptr, control, stop_requested, shared->stop);
  if (!is_over || shared->stop) throw Stopped();
  return shared->report;
}

std::map<std::string, std::shared_ptr<const Dataset>> open_datasets(const RunConfig& config,
                                                                    const SampleEncoder& encoder,
                                                                    const Groups& groups,
                                                                    const std::function<bool()>& stop_requested) {
  Comm& control = *groups.control;
  std::map<std::string, std::shared_ptr<const Dataset>> out;
  const bool is_root = control.rank() == 0, is_leader = is_first_of_host(control);
  for (const std::string& name : used_sets(config)) {
    const PackReport report = pack_together(name, config, encoder, control, is_root, stop_requested);
    log_packed(name, report);
    pack_together(name, config, encoder, control, is_leader && !is_root, stop_requested);
    const std::string file = broadcast_text(report.file, 0, control);
    run_together(control, [&] { out[name] = std::make_shared<const Dataset>(file); });
  }
  return out;
}

Work work_of_first_rows(const StageData& data) {
  constexpr size_t kSamples = 48;
  Work work;
  Cursor cursor;
  size_t num_samples = 0, num_rows = 0;
  const std::vector<Row> rows = data.sampler->next(cursor);
  for (const Row& row : rows) {
    for (const SampleRef& ref : row) work += work_of(data.datasets[ref.dataset]->read(ref.index));
    ++num_rows;
    if ((num_samples += row.size()) >= kSamples) break;
  }
  return work / (static_cast<double>(num_rows) / static_cast<double>(rows.size()));
}

int64_t pad_multiple_of(const Groups& groups) {
  return int64_t{groups.sequence_parallel ? groups.tp->size() : 1} * groups.cp->size();
}

StageData make_stage_data(const RunConfig& config,
                          const StageConfig& stage,
                          const std::map<std::string, std::shared_ptr<const Dataset>>& datasets,
                          const VisionPrep& vision,
                          const Groups& groups) {
  StageData out;
  std::vector<Sampler::Source> sources;
  for (const std::string& name : mixture_of(config, stage)) {
    const auto& dataset = datasets.at(name);
    const double share = stage.mixture.empty() ? 1 : stage.mixture.at(name);
    sources.push_back(usable_samples(*dataset, share, stage.seq_len).source);
    if (stage.mixture.empty()) sources.back().share = static_cast<double>(sources.back().lengths.size());
    out.datasets.push_back(dataset);
  }
  // Another order for every stage: the second must not begin with what the first has just seen.
  const uint64_t seed = key_of(static_cast<uint64_t>(config.seed), "data order of " + stage.name);
  out.sampler = std::make_shared<const Sampler>(
      std::move(sources), stage.seq_len, stage.rows_per_step, config.data.pack_window, seed);
  const SampleEncoder encoder{.vision = vision};
  const bool pin_memory = at::hasCUDA() && config.device != "cpu";
  out.options = {.batch = batch_spec(stage, config.data, encoder, pad_multiple_of(groups), pin_memory),
                 .reader_threads = config.data.reader_threads,
                 .prefetch_steps = config.data.prefetch_steps};
  out.num_steps = steps_of(stage, *out.sampler, out.datasets);
  return out;
}

}  // namespace hanok
