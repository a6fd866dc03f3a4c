#include "trainer/metrics.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/log.h"
#include "dataio/file_io.h"
#include "trainer/plot.h"
#include "trainer/progress.h"

namespace hanok {
namespace {

using nlohmann::json;

/// A line that is a whole JSON object with a stage and a step, else nothing.
std::optional<json> parsed(const std::string& line) {
  json value = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object() || !value.contains("stage") || !value["stage"].is_string()) return std::nullopt;
  if (!value.contains("step") || !value["step"].is_number()) return std::nullopt;
  return value;
}

/// Bytes of the file that a run resumed after step `step` of `stage` keeps: through the last line that is not beyond
/// it; when the stage has not begun, up to its first line.
int64_t kept_bytes(const std::string& path, const std::string& stage, int64_t step) {
  std::ifstream file(path);
  int64_t position = 0, kept = 0;
  bool stage_seen = false;
  for (std::string line; std::getline(file, line) && !file.eof();) {  // eof: the last line was torn
    position += static_cast<int64_t>(line.size()) + 1;
    const std::optional<json> value = parsed(line);
    if (!value) break;
    if ((*value)["stage"] == stage) {
      stage_seen = true;
      if ((*value)["step"].get<double>() > static_cast<double>(step)) break;
      kept = position;
    } else if (!stage_seen) {
      kept = position;
    }
  }
  return kept;
}

json json_of(const StepMetrics& s) {
  return {{"kind", "step"},
          {"stage", s.stage},
          {"step", s.step},
          {"num_steps", s.num_steps},
          {"tokens", s.tokens},
          {"label_tokens", s.label_tokens},
          {"loss", s.loss},
          {"grad_norm", s.grad_norm},
          {"lr", s.lr},
          {"step_s", s.step_s},
          {"data_wait_s", s.data_wait_s},
          {"checkpoint_stall_s", s.checkpoint_stall_s},
          {"tokens_per_s", s.tokens_per_s},
          {"model_flops_per_s", s.model_flops_per_s},
          {"memory_gib", s.memory_gib},
          {"fill", s.fill},
          {"applied", s.applied}};
}

/// Adds the point of one line; a stage begins where the one before it ended.
void add_point(LossPlot& plot, const json& line) {
  const std::string stage = line["stage"];
  if (plot.stages.empty() || plot.stages.back().name != stage) {
    const double begin = plot.stages.empty() ? 0 : plot.stages.back().end;
    plot.stages.push_back({stage, begin, begin});
  }
  const double x = plot.stages.back().begin + line["step"].get<double>();
  plot.stages.back().end = std::max(plot.stages.back().end, x);
  if (!line.contains("loss") || !line["loss"].is_number()) return;
  const bool is_evaluation = line.value("kind", "") == "evaluation";
  (is_evaluation ? plot.held_out : plot.loss).push_back({x, line["loss"].get<double>()});
}

}  // namespace

std::string readable_line(const StepMetrics& s, double eta_s) {
  std::string text = concat(s.stage, " ", s.step, "/", s.num_steps);
  text += printed("  loss %.4f", s.loss) + printed("  norm %.3g", s.grad_norm) + printed("  lr %.2e", s.lr);
  text += "  " + short_number(s.tokens_per_s) + " tok/s" + "  " + short_number(s.model_flops_per_s, "FLOP/s");
  text +=
      printed("  wait %.0f%%", s.step_s > 0 ? 100 * s.data_wait_s / s.step_s : 0) + printed("  %.2f GiB", s.memory_gib);
  if (s.step < s.num_steps) text += "  eta " + duration_text(eta_s);
  return s.applied ? text : text + "  SKIPPED: not finite";
}

struct Metrics::State {
  std::string folder, path, stage;
  int64_t log_every = 1;
  bool is_terminal = false, warned = false;
  double mean_step_s = 0;
  std::FILE* file = nullptr;
  std::unique_ptr<Progress> bar;
  LossPlot plot{.title = "Training loss"};

  ~State() {
    if (file) std::fclose(file);
  }

  void append(const json& value) {
    add_point(plot, value);
    const std::string line = value.dump() + "\n";
    if (std::fwrite(line.data(), 1, line.size(), file) == line.size() && std::fflush(file) == 0) return;
    if (!warned)
      HANOK_LOG(WARNING) << "metrics: got a write error, expected room; " << path << "; lines are being lost";
    warned = true;
  }

  /// Mean over about the last twenty steps; the first of a process is slower and soon forgotten.
  double eta_s(const StepMetrics& step) {
    mean_step_s = mean_step_s == 0 ? step.step_s : mean_step_s + 0.1 * (step.step_s - mean_step_s);
    return mean_step_s * static_cast<double>(step.num_steps - step.step);
  }
};

Metrics::Metrics(
    const std::string& folder, const std::string& resume_stage, int64_t resume_step, bool writes, int64_t log_every)
    : state_(std::make_unique<State>()) {
  if (!writes) return;
  State& s = *state_;
  s.folder = folder;
  s.path = folder + "/metrics.jsonl";
  s.log_every = log_every;
  s.is_terminal = on_terminal();
  std::error_code error;
  if (std::filesystem::exists(s.path, error))
    std::filesystem::resize_file(s.path, static_cast<uintmax_t>(kept_bytes(s.path, resume_stage, resume_step)), error);
  HANOK_REQUIRE(!error, kIo) << "metrics: got " << error.message() << ", expected a file that can be cut; " << s.path;
  std::ifstream earlier(s.path);
  for (std::string line; std::getline(earlier, line);)
    if (const std::optional<json> value = parsed(line)) add_point(s.plot, *value);
  s.file = std::fopen(s.path.c_str(), "ab");
  HANOK_REQUIRE(s.file, kIo) << "metrics: got a file that cannot be opened, expected a writable folder; " << s.path
                             << "; check rights and free space";
}

Metrics::~Metrics() = default;

void Metrics::record(const StepMetrics& step) {
  State& s = *state_;
  if (!s.file) return;
  s.append(json_of(step));
  if (s.stage != step.stage) {
    s.stage = step.stage;
    s.mean_step_s = 0;
    s.bar = s.is_terminal ? std::make_unique<Progress>(step.stage, step.num_steps, "steps") : nullptr;
  }
  const double eta_s = s.eta_s(step);
  const bool is_last = step.step == step.num_steps;
  if (step.step % s.log_every == 0 || step.step == 1 || is_last || !step.applied)
    print_line(readable_line(step, eta_s));
  if (!s.bar) return;
  s.bar->update(step.step, printed("loss %.4f", step.loss), eta_s);
  if (is_last) s.bar.reset();
}

void Metrics::record_evaluation(const std::string& stage, int64_t step, const std::string& text) {
  if (!state_->file) return;
  json line = {{"kind", "evaluation"}, {"stage", stage}, {"step", step}};
  line.update(json::parse(text));
  state_->append(line);
}

void Metrics::draw_loss() const {
  if (!state_->file || state_->plot.loss.empty()) return;
  try {
    write_file_atomically(state_->folder + "/loss.svg", loss_svg(state_->plot));
  } catch (const Error& error) {  // a picture is not worth a run
    HANOK_LOG(WARNING) << error.what();
  }
}

}  // namespace hanok
