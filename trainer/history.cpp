#include "trainer/history.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "trainer/progress.h"

namespace hanok {
namespace {

using nlohmann::json;

double number_of(const json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number() ? found->get<double>() : NAN;
}

int64_t count_of(const json& line, const char* key) {
  const double value = number_of(line, key);
  return value >= 0 && value < 9e15 ? static_cast<int64_t>(value) : 0;
}

double or_zero(double value) {
  return std::isfinite(value) ? value : 0;
}

std::vector<std::vector<int64_t>> confusion_of(const json& line) {
  const auto found = line.find("confusion");
  std::vector<std::vector<int64_t>> table;
  if (found == line.end() || !found->is_array()) return table;
  for (const json& row : *found) {
    if (!row.is_array() || row.size() != found->size()) return {};
    table.emplace_back();
    for (const json& cell : row) table.back().push_back(cell.is_number_integer() ? cell.get<int64_t>() : 0);
  }
  return table;
}

RunHistory::Evaluation evaluation_of(const json& line) {
  return {.loss = number_of(line, "loss"),
          .accuracy = number_of(line, "accuracy"),
          .accuracy_low = number_of(line, "accuracy_low"),
          .accuracy_high = number_of(line, "accuracy_high"),
          .calibration_error = number_of(line, "expected_calibration_error"),
          .num_samples = count_of(line, "num_samples"),
          .num_answered = count_of(line, "num_answered"),
          .num_correct = count_of(line, "num_correct"),
          .confusion = confusion_of(line)};
}

std::vector<PlotStage> bands_of(const RunHistory& history) {
  std::vector<PlotStage> bands;
  for (const auto& stage : history.stages) bands.push_back({stage.name, stage.begin, stage.end});
  return bands;
}

std::vector<PlotPoint> curve_of(const RunHistory& history, double RunHistory::Step::*value) {
  std::vector<PlotPoint> curve;
  for (const auto& step : history.steps) curve.push_back({step.x, step.*value});
  return curve;
}

std::string place_of(const RunHistory::Evaluation& e) {
  return concat(e.stage, " step ", e.step, ": ");
}

}  // namespace

void RunHistory::add(const json& line) {
  if (!line.is_object() || !line.contains("stage") || !line["stage"].is_string()) return;
  const std::string name = line["stage"];
  if (line.value("kind", json()) == "plan") return;
  const double number = number_of(line, "step");
  if (!(number >= 0)) return;
  if (stages.empty() || stages.back().name != name) {
    const double begin = stages.empty() ? 0 : stages.back().end;
    stages.push_back({.name = name, .begin = begin, .end = begin, .last_loss = NAN});
  }
  Stage& stage = stages.back();
  const double x = stage.begin + number;
  stage.end = std::max(stage.end, x);
  if (line.value("kind", json()) == "evaluation") {
    evaluations.push_back(evaluation_of(line));
    evaluations.back().stage = name;
    evaluations.back().step = static_cast<int64_t>(number);
    evaluations.back().x = x;
    return;
  }
  steps.push_back({.x = x,
                   .loss = number_of(line, "loss"),
                   .grad_norm = number_of(line, "grad_norm"),
                   .lr = number_of(line, "lr"),
                   .tokens_per_s = number_of(line, "tokens_per_s")});
  const double step_s = or_zero(number_of(line, "step_s"));
  stage.num_steps = count_of(line, "num_steps");
  stage.tokens += or_zero(number_of(line, "tokens"));
  stage.seconds += step_s;
  stage.data_wait_s += or_zero(number_of(line, "data_wait_s"));
  stage.flops += or_zero(number_of(line, "model_flops_per_s")) * step_s;
  stage.last_loss = steps.back().loss;
  stage.peak_memory_gib = std::max(stage.peak_memory_gib, or_zero(number_of(line, "memory_peak_gib")));
  stage.num_skipped += line.value("applied", json()) == json(false);
}

double RunHistory::begin_of(const std::string& stage) const {
  for (const Stage& known : stages)
    if (known.name == stage) return known.begin;
  return stages.empty() ? 0 : stages.back().end;
}

Chart loss_chart(const RunHistory& history) {
  Chart chart{.title = "Loss", .unit = "loss per label", .curve = curve_of(history, &RunHistory::Step::loss)};
  chart.stages = bands_of(history);
  for (const auto& e : history.evaluations)
    chart.marks.push_back({.x = e.x, .y = e.loss, .note = place_of(e) + printed("held-out loss %.4f", e.loss)});
  return chart;
}

Chart accuracy_chart(const RunHistory& history) {
  Chart chart{.title = "Held-out accuracy", .unit = "% right", .stages = bands_of(history), .floor = 0, .ceiling = 100};
  for (const auto& e : history.evaluations) {
    if (!std::isfinite(e.accuracy)) continue;
    chart.marks.push_back({.x = e.x,
                           .y = 100 * e.accuracy,
                           .low = 100 * e.accuracy_low,
                           .high = 100 * e.accuracy_high,
                           .note = concat(place_of(e), e.num_correct, " of ", e.num_answered, " right")});
    if (e.confusion.size() < 2) continue;
    chart.level = 100 / static_cast<double>(e.confusion.size());
    chart.level_name = "guessing";
  }
  return chart;
}

Chart throughput_chart(const RunHistory& history) {
  return {.title = "Throughput",
          .unit = "tokens/s",
          .curve = curve_of(history, &RunHistory::Step::tokens_per_s),
          .stages = bands_of(history),
          .floor = 0};
}

Chart rate_chart(const RunHistory& history) {
  return {.title = "Learning rate",
          .unit = "rate",
          .curve = curve_of(history, &RunHistory::Step::lr),
          .smoothed = false,
          .stages = bands_of(history),
          .floor = 0};
}

Chart grad_norm_chart(const RunHistory& history) {
  return {.title = "Gradient norm",
          .unit = "before clipping",
          .curve = curve_of(history, &RunHistory::Step::grad_norm),
          .stages = bands_of(history),
          .floor = 0};
}

}  // namespace hanok
