#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "trainer/evaluate.h"
#include "trainer/progress.h"

namespace hanok {
namespace {

using nlohmann::json;

int best_choice(const JudgedSample& sample) {
  return static_cast<int>(std::max_element(sample.probabilities.begin(), sample.probabilities.end()) -
                          sample.probabilities.begin());
}

bool is_finite(const JudgedSample& sample) {
  const auto finite = [](double x) { return std::isfinite(x); };
  return finite(sample.weighted_nll) && std::all_of(sample.probabilities.begin(), sample.probabilities.end(), finite);
}

std::string letter(int choice) {
  return std::string(1, static_cast<char>('a' + choice));
}

/// Invalid UTF-8 cannot come from the importers; should it, a line is worth more than an exception.
std::string text_of(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

/// Sums while they are being gathered; means afterwards.
void count_reliability(EvalResult& result, double confidence, bool is_correct) {
  EvalResult::Bin& bin = result.reliability[std::clamp(static_cast<int>(confidence * 10), 0, 9)];
  bin.confidence += confidence;
  bin.accuracy += is_correct;
  ++bin.count;
}

void finish_reliability(EvalResult& result) {
  for (EvalResult::Bin& bin : result.reliability) {
    if (bin.count == 0) continue;
    bin.confidence /= static_cast<double>(bin.count);
    bin.accuracy /= static_cast<double>(bin.count);
    result.expected_calibration_error += std::abs(bin.accuracy - bin.confidence) * static_cast<double>(bin.count) /
                                         static_cast<double>(result.num_answered);
  }
}

}  // namespace

void wilson_interval(int64_t hits, int64_t trials, double& low, double& high) {
  low = 0;
  high = 1;
  if (trials == 0) return;
  constexpr double z = 1.959963984540054;  // 97.5 % quantile of the normal distribution
  const auto n = static_cast<double>(trials);
  const double p = static_cast<double>(hits) / n, center = (p + z * z / (2 * n)) / (1 + z * z / n);
  const double half = z * std::sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n);
  low = hits == 0 ? 0 : center - half;
  high = hits == trials ? 1 : center + half;
}

EvalResult summarise(const std::vector<JudgedSample>& samples) {
  EvalResult result;
  result.num_samples = static_cast<int64_t>(samples.size());
  result.reliability.resize(10);
  double nll = 0, weight = 0;
  size_t most = 0;
  for (const JudgedSample& sample : samples) most = std::max(most, sample.probabilities.size());
  result.confusion.assign(most, std::vector<int64_t>(most, 0));
  for (const JudgedSample& sample : samples) {
    nll += sample.weighted_nll;
    weight += sample.weight;
    result.num_labels += sample.num_labels;
    const bool is_known = is_finite(sample);
    result.num_not_finite += !is_known;
    if (sample.probabilities.empty()) continue;
    ++result.num_choice_samples;
    if (sample.answer < 0) continue;
    ++result.num_answered;
    if (!is_known) continue;
    const int choice = best_choice(sample);
    result.num_correct += choice == sample.answer;
    ++result.confusion[sample.answer][choice];
    count_reliability(result, sample.probabilities[choice], choice == sample.answer);
  }
  if (weight > 0) result.loss = nll / weight;
  if (result.num_answered > 0)
    result.accuracy = static_cast<double>(result.num_correct) / static_cast<double>(result.num_answered);
  wilson_interval(result.num_correct, result.num_answered, result.accuracy_low, result.accuracy_high);
  finish_reliability(result);
  if (result.num_not_finite > 0)
    for (double* share :
         {&result.accuracy, &result.accuracy_low, &result.accuracy_high, &result.expected_calibration_error})
      *share = std::numeric_limits<double>::quiet_NaN();
  return result;
}

void require_finite(const EvalResult& result) {
  HANOK_REQUIRE(result.num_not_finite == 0, kNumeric)
      << "evaluation: got values that are not finite for " << result.num_not_finite << " of " << result.num_samples
      << " samples, expected numbers; nothing is scored, and no file of answers is written; the weights come from a "
         "training that diverged: take an earlier checkpoint, or train again with a lower optimizer.lr";
}

std::string dump_line(const std::string& id, const JudgedSample& sample) {
  json line = {{"id", id}};
  if (!sample.probabilities.empty()) {
    std::vector<double> sorted = sample.probabilities;
    std::sort(sorted.rbegin(), sorted.rend());
    line["choices"] = sample.probabilities;
    line["margin"] = sorted.size() > 1 ? sorted[0] - sorted[1] : sorted[0];
    line["choice"] = letter(best_choice(sample));
    if (sample.answer >= 0) line["answer"] = letter(sample.answer);
  }
  line["label_ids"] = sample.label_ids;
  line["label_logprobs"] = sample.label_logprobs;
  return text_of(line);
}

std::string submission_line(const std::string& id, const JudgedSample& sample) {
  std::string field = id;
  if (id.find_first_of(",\"\r\n") != std::string::npos) {
    field = "\"";
    for (const char c : id) field += c == '"' ? std::string("\"\"") : std::string(1, c);
    field += '"';
  }
  return field + "," + letter(best_choice(sample));
}

std::string to_json(const EvalResult& r) {
  json out = {{"num_samples", r.num_samples},
              {"num_choice_samples", r.num_choice_samples},
              {"num_answered", r.num_answered},
              {"num_labels", r.num_labels},
              {"num_not_finite", r.num_not_finite},
              {"seconds", r.seconds}};
  if (r.num_labels > 0) out["loss"] = r.loss;
  if (r.num_answered > 0) {
    out["num_correct"] = r.num_correct;
    out["accuracy"] = r.accuracy;
    out["accuracy_low"] = r.accuracy_low;
    out["accuracy_high"] = r.accuracy_high;
    out["confusion"] = r.confusion;
    out["expected_calibration_error"] = r.expected_calibration_error;
    for (const EvalResult::Bin& bin : r.reliability)
      out["reliability"].push_back({{"count", bin.count}, {"confidence", bin.confidence}, {"accuracy", bin.accuracy}});
  }
  return text_of(out);
}

std::string short_text(const EvalResult& r) {
  std::string text = concat(r.num_samples, " samples");
  if (r.num_not_finite > 0) return text + concat(", ", r.num_not_finite, " of them without finite numbers");
  if (r.num_labels > 0) text += printed(", loss %.4f", r.loss);
  if (r.num_answered > 0) {
    text += printed(", accuracy %.2f %%", 100 * r.accuracy) + printed(" (%.2f", 100 * r.accuracy_low) +
            printed(" to %.2f)", 100 * r.accuracy_high);
  }
  return text + printed(", %.1f s", r.seconds);
}

std::string to_text(const EvalResult& r) {
  std::string text = concat(short_text(r), "\n");
  if (r.num_choice_samples > r.num_answered)
    text += concat(r.num_choice_samples - r.num_answered, " questions without a known answer were answered\n");
  if (r.num_answered == 0 || r.num_not_finite > 0) return text;
  text += concat(r.num_correct, " of ", r.num_answered, " right; the interval holds with 95 %") +
          printed("; calibration error %.3f\n", r.expected_calibration_error) + "answer \\ choice";
  const auto column = [](const std::string& cell) {
    return std::string(cell.size() < 7 ? 7 - cell.size() : 1, ' ') + cell;
  };
  for (size_t c = 0; c < r.confusion.size(); ++c) text += column(letter(static_cast<int>(c)));
  for (size_t a = 0; a < r.confusion.size(); ++a) {
    text += "\n" + std::string(14, ' ') + letter(static_cast<int>(a));
    for (const int64_t count : r.confusion[a]) text += column(concat(count));
  }
  return text + "\n";
}

}  // namespace hanok
