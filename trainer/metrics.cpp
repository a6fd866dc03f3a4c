#include "trainer/metrics.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "trainer/append_file.h"
#include "trainer/event_file.h"
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

bool is_beyond(const json& line, const ResumePoint& from) {
  const bool is_evaluation = line.contains("kind") && line["kind"] == "evaluation";
  return line["step"].get<double>() > static_cast<double>(is_evaluation ? from.evaluated_step : from.step);
}

/// Bytes of the file that a resumed run keeps: up to the first line of its stage that is beyond the point where it goes
/// on; when the stage has not begun, up to its first line. Lines that are none say nothing.
int64_t kept_bytes(const std::string& path, const ResumePoint& from) {
  std::ifstream file(path);
  int64_t position = 0, kept = 0;
  bool stage_seen = false;
  for (std::string line; std::getline(file, line) && !file.eof();) {  // eof: the last line was torn
    position += static_cast<int64_t>(line.size()) + 1;
    const std::optional<json> value = parsed(line);
    if (!value) continue;
    const bool is_stage = (*value)["stage"] == from.stage;
    stage_seen |= is_stage;
    if (is_stage ? is_beyond(*value, from) : stage_seen) break;
    kept = position;
  }
  return kept;
}

/// What a run that goes on starts from: the file, cut; its lines are added to `history`.
void take_up(const std::string& path, const ResumePoint& from, RunHistory& history) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return;
  std::filesystem::resize_file(path, static_cast<uintmax_t>(kept_bytes(path, from)), error);
  HANOK_REQUIRE(!error, kIo) << path << ": got '" << error.message()
                             << "', expected a file that can be cut to where the run goes on; check its rights";
  std::ifstream earlier(path);
  for (std::string line; std::getline(earlier, line);)
    if (const std::optional<json> value = parsed(line)) history.add(*value);
}

json json_of(const StepMetrics& s) {
  json out = {{"kind", "step"},
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
              {"memory_peak_gib", s.memory_peak_gib},
              {"fill", s.fill},
              {"applied", s.applied}};
  if (s.experts) {
    out["aux_loss"] = s.experts->aux_loss;
    out["expert_tokens_mean"] = s.experts->tokens_mean;
    out["expert_tokens_max"] = s.experts->tokens_max;
    out["expert_tokens_dropped"] = s.experts->dropped;
  }
  return out;
}

EventFile::Scalars scalars_of(const StepMetrics& s) {
  EventFile::Scalars out = {{"train/loss", s.loss},
                            {"train/grad_norm", s.grad_norm},
                            {"train/lr", s.lr},
                            {"speed/step_s", s.step_s},
                            {"speed/data_wait_s", s.data_wait_s},
                            {"speed/tokens_per_s", s.tokens_per_s},
                            {"speed/model_flops_per_s", s.model_flops_per_s},
                            {"memory/gib", s.memory_gib},
                            {"memory/peak_gib", s.memory_peak_gib}};
  if (s.experts) {
    out.emplace_back("experts/aux_loss", s.experts->aux_loss);
    out.emplace_back("experts/tokens_max_over_mean", s.experts->tokens_max / std::max(1.0, s.experts->tokens_mean));
  }
  return out;
}

EventFile::Scalars scalars_of(const json& evaluation) {
  EventFile::Scalars out;
  for (const char* key : {"loss", "accuracy", "expected_calibration_error"})
    if (evaluation.contains(key) && evaluation[key].is_number())
      out.emplace_back(std::string("held_out/") + key, evaluation[key].get<double>());
  return out;
}

}  // namespace

std::string readable_line(const StepMetrics& s, double eta_s, int columns) {
  std::string text = concat(s.stage, " ", s.step, "/", s.num_steps);
  if (!s.applied) text += s.label_tokens > 0 ? "  SKIPPED: not finite" : "  SKIPPED: no label";
  const auto add = [&](const std::string& field) {
    if (columns <= 0 || text.size() + 2 + field.size() <= static_cast<size_t>(columns)) text += "  " + field;
  };
  add(printed("loss %.4f", s.loss));
  add(printed("norm %.3g", s.grad_norm));
  add(printed("lr %.2e", s.lr));
  add(short_number(s.tokens_per_s) + " tok/s");
  add(short_number(s.model_flops_per_s, "FLOP/s"));
  add(printed("wait %.0f%%", s.step_s > 0 ? 100 * s.data_wait_s / s.step_s : 0));
  add(printed("%.2f/", s.memory_gib) + printed("%.2f GiB", s.memory_peak_gib));
  if (s.step < s.num_steps && eta_s >= 0) add("eta " + duration_text(eta_s));
  return text;
}

struct Metrics::State {
  std::string stage;
  int64_t log_every = 1;
  bool is_terminal = false;
  double mean_step_s = 0;
  std::unique_ptr<AppendFile> lines;
  std::unique_ptr<EventFile> events;
  std::unique_ptr<Progress> bar;
  RunHistory history;

  void append(const json& line, const EventFile::Scalars& scalars) {
    history.add(line);
    lines->append(line.dump(-1, ' ', false, json::error_handler_t::replace) + "\n");
    const double x = history.begin_of(line["stage"]) + line["step"].get<double>();
    if (!scalars.empty()) events->add(static_cast<int64_t>(x), scalars);
  }

  /// Mean over about the last twenty steps; the first of a process is slower and soon forgotten.
  double eta_s(const StepMetrics& step) {
    mean_step_s = mean_step_s == 0 ? step.step_s : mean_step_s + 0.1 * (step.step_s - mean_step_s);
    return mean_step_s * static_cast<double>(step.num_steps - step.step);
  }
};

Metrics::Metrics(const std::string& folder, const ResumePoint& from, bool writes, int64_t log_every)
    : state_(std::make_unique<State>()) {
  if (!writes) return;
  State& s = *state_;
  s.log_every = log_every;
  s.is_terminal = on_terminal();
  const std::string path = folder + "/metrics.jsonl";
  take_up(path, from, s.history);
  s.lines = std::make_unique<AppendFile>(path);
  const double first_step = s.history.begin_of(from.stage) + static_cast<double>(from.step) + 1;
  s.events = std::make_unique<EventFile>(folder, static_cast<int64_t>(first_step));
}

Metrics::~Metrics() = default;

void Metrics::record(const StepMetrics& step) {
  State& s = *state_;
  if (!s.lines) return;
  s.append(json_of(step), scalars_of(step));
  if (s.stage != step.stage) {
    s.stage = step.stage;
    s.mean_step_s = 0;
    s.bar = s.is_terminal ? std::make_unique<Progress>(step.stage, step.num_steps, "steps") : nullptr;
  }
  const double eta_s = s.eta_s(step);
  const bool is_last = step.step == step.num_steps;
  const Tone tone = step.applied ? Tone::kPlain : Tone::kWarning;
  if (s.is_terminal) {
    print_line(readable_line(step, -1, terminal_columns()), tone);  // the bar says how long it takes
  } else if (step.step % s.log_every == 0 || step.step == 1 || is_last || !step.applied) {
    print_line(readable_line(step, eta_s, 0), tone);
  }
  if (!s.bar) return;
  s.bar->update(step.step, printed("loss %.4f", step.loss), eta_s);
  if (is_last) s.bar.reset();
}

void Metrics::record_evaluation(const std::string& stage, int64_t step, const std::string& text) {
  if (!state_->lines) return;
  json line = {{"kind", "evaluation"}, {"stage", stage}, {"step", step}};
  line.update(json::parse(text));
  state_->append(line, scalars_of(line));
}

void Metrics::record_comparison(const StageComparison& c) {
  if (!state_->lines) return;
  state_->append({{"kind", "plan"},
                  {"stage", c.stage},
                  {"step", c.step},
                  {"step_s", c.step_s},
                  {"step_s_planned", c.step_s_planned},
                  {"tokens_per_s", c.tokens_per_s},
                  {"model_flops_per_s", c.model_flops_per_s},
                  {"memory_peak_gib", c.peak_gib},
                  {"memory_peak_gib_planned", c.peak_gib_planned}},
                 {});
}

const RunHistory& Metrics::history() const {
  return state_->history;
}

}  // namespace hanok
