// What a run did so far, from the lines of metrics.jsonl: what loss.svg and report.html are drawn from.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "trainer/plot.h"

namespace hanok {

/// Positions x count optimizer steps since the start of the run: a stage begins where the one before it ended. What a
/// line lacks, or says as null, is NaN.
struct RunHistory {
  struct Step {
    double x = 0, loss = 0, grad_norm = 0, lr = 0, tokens_per_s = 0;
  };
  struct Evaluation {
    std::string stage;
    int64_t step = 0;
    double x = 0, loss = 0, accuracy = 0, accuracy_low = 0, accuracy_high = 0, calibration_error = 0;
    int64_t num_samples = 0, num_answered = 0, num_correct = 0;
    std::vector<std::vector<int64_t>> confusion;  // [answer][choice], square; empty: nothing was answered
  };
  struct Stage {
    std::string name;
    double begin = 0, end = 0;  // in x
    int64_t num_steps = 0;      // that it was to have
    double tokens = 0, seconds = 0, data_wait_s = 0, flops = 0;
    double last_loss = 0, peak_memory_gib = 0;
    int64_t num_skipped = 0;
  };
  std::vector<Step> steps;
  std::vector<Evaluation> evaluations;
  std::vector<Stage> stages;

  /// One line; one that is no line of metrics.jsonl is left out.
  void add(const nlohmann::json& line);
  /// Where step 0 of a stage lies, or would lie.
  double begin_of(const std::string& stage) const;
};

Chart loss_chart(const RunHistory& history);
Chart accuracy_chart(const RunHistory& history);  // in per cent, with the level of guessing
Chart throughput_chart(const RunHistory& history);
Chart rate_chart(const RunHistory& history);
Chart grad_norm_chart(const RunHistory& history);

}  // namespace hanok
