// Held-out loss, forced choice by next-token probabilities, and per-sample dumps.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "dataio/dataset.h"
#include "dataio/pack.h"
#include "model/vlm.h"

namespace hanok {

struct EvalResult {
  int64_t num_samples = 0, num_choice_samples = 0, num_answered = 0, num_correct = 0;
  double loss = 0;                                           // weighted as the stage weights tokens
  double accuracy = 0, accuracy_low = 0, accuracy_high = 0;  // Wilson, 95 %
  std::vector<std::vector<int64_t>> confusion;               // [answer][choice]
  struct Bin {
    double confidence = 0, accuracy = 0;
    int64_t count = 0;
  };
  std::vector<Bin> reliability;  // ten bins of the chosen probability
  double expected_calibration_error = 0;
  double seconds = 0;
};

struct EvalOptions {
  int64_t seq_len = 2048;
  int64_t rows_per_forward = 1;
  BatchSpec batch;
  int shuffles = 1;
  uint64_t seed = 0;
  std::string dump, submission;  // files; empty: none
  bool show_progress = false;
};

/// One forward a sample (times shuffles); the choice probabilities are sums over the token variants of each letter
/// (with and without leading space or newline), normalised over the choices. With shuffles > 1 the order of the choices
/// is permuted and the permutation undone; probabilities are averaged. Same layout: bit-identical on any number of data
/// parallel ranks.
EvalResult evaluate(const Vlm& model, const Dataset& dataset, const SampleEncoder& encoder, const EvalOptions& options);
std::string to_json(const EvalResult& result);
/// Lines for people: accuracy with its interval, the confusion table.
std::string to_text(const EvalResult& result);

}  // namespace hanok
