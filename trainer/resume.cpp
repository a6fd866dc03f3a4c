#include "trainer/resume.h"

#include <algorithm>

#include "base/error.h"
#include "configs/schema/read.h"

namespace hanok {
namespace {

/// Where things lie, what is said, when is saved: these change no number.
const std::vector<std::string> kHarmless = {"name",
                                            "out",
                                            "device",
                                            "threads",
                                            "parallel.",
                                            "save.",
                                            "log.",
                                            "data.cache",
                                            "eval.dump",
                                            "eval.output",
                                            "eval.submission",
                                            "data.reader_threads",
                                            "data.prefetch_steps"};

/// Weights, tokenizer and numbers' width may come from another place; what they are is checked where they are used.
const std::vector<std::string> kMovable = {"model.path", "model.tokenizer", "model.dtype"};

const std::vector<std::string> kOtherModel = {"model.", "seed"};

/// Keys of a stage that decide what trains and which samples a step sees: a place in the stream means nothing without.
const std::vector<std::string> kOtherCourse = {"seq_len", "rows_per_step", "trainable", "mixture", "name", "objective"};

bool starts_with_any(const std::string& text, const std::vector<std::string>& beginnings) {
  return std::any_of(beginnings.begin(), beginnings.end(), [&](const auto& b) { return text.starts_with(b); });
}

void require_none(const std::vector<std::string>& lines, const std::string& what, const std::string& advice) {
  if (lines.empty()) return;
  std::string text;
  for (const std::string& line : lines) text += "\n  " + line;
  HANOK_FAIL(kConfig) << "resume: got " << what << ", expected the ones of the checkpoint; " << advice << ":" << text;
}

const StageConfig* stage_of(const RunConfig& config, const std::string& name) {
  const auto found =
      std::find_if(config.stages.begin(), config.stages.end(), [&](const StageConfig& s) { return s.name == name; });
  return found == config.stages.end() ? nullptr : &*found;
}

/// "align, all"
std::string listed(const RunConfig& config) {
  std::string text;
  for (const StageConfig& stage : config.stages) text += (text.empty() ? "" : ", ") + stage.name;
  return text;
}

}  // namespace

std::vector<std::string> resume_differences(const RunConfig& was, const RunConfig& is) {
  RunConfig as_today = was;
  as_today.stages.clear();
  for (const StageConfig& stage : is.stages) {
    const StageConfig* before = stage_of(was, stage.name);
    as_today.stages.push_back(before != nullptr ? *before : stage);
  }
  std::vector<std::string> out = differences(as_today, is, kHarmless);
  const std::string names = listed(was), today = listed(is);
  if (names != today) out.push_back(concat("stages: were ", names, ", are ", today));
  return out;
}

void require_same_order_of_stages(const RunConfig& was, const RunConfig& is) {
  const auto common = [](const RunConfig& config, const RunConfig& other) {
    std::vector<std::string> names;
    for (const StageConfig& stage : config.stages)
      if (stage_of(other, stage.name) != nullptr) names.push_back(stage.name);
    return names;
  };
  HANOK_REQUIRE(common(was, is) == common(is, was), kConfig)
      << "resume: got stages " << listed(is) << ", expected them in the order of the checkpoint: " << listed(was)
      << "; key stages; set the order back, choose another `out`, or start anew with --resume never (earlier "
      << "checkpoints are set aside)";
}

std::vector<std::string> stages_left_out(const RunConfig& was, const RunConfig& is, int index) {
  std::vector<std::string> names;
  for (int i = 0; i < index; ++i)
    if (stage_of(was, is.stages[i].name) == nullptr) names.push_back(is.stages[i].name);
  return names;
}

void require_same_model(const std::vector<std::string>& differences) {
  std::vector<std::string> refused;
  for (const std::string& line : differences)
    if (starts_with_any(line, kOtherModel) && !starts_with_any(line, kMovable)) refused.push_back(line);
  require_none(
      refused,
      "another model or seed",
      "set them back, choose another `out`, or start anew with --resume never (earlier checkpoints are set aside)");
}

void require_same_stage(const std::vector<std::string>& differences,
                        int index,
                        const TrainState& state,
                        const std::string& data_key) {
  const std::string prefix = concat("stages.", index, ".");
  std::vector<std::string> refused;
  for (const std::string& line : differences) {
    const bool is_course = line.starts_with(prefix) && starts_with_any(line.substr(prefix.size()), kOtherCourse);
    if (is_course || line.starts_with("data.pack_window")) refused.push_back(line);
  }
  if (state.data_key != data_key)
    refused.push_back("content of the datasets: was " + state.data_key + ", is " + data_key);
  require_none(refused,
               concat("other data or another course in the middle of a stage (step ", state.step, ")"),
               "set them back, or make the change a stage of its own");
}

}  // namespace hanok
