// Held-out loss, forced choice by next-token probabilities, and per-sample dumps.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dataio/dataset.h"
#include "dataio/loader.h"
#include "dataio/pack.h"
#include "model/vlm.h"

namespace hanok {

/// What is known of one sample after its forwards.
struct JudgedSample {
  double weighted_nll = 0, weight = 0;
  int answer = -1;                    // original choice; -1: not given
  std::vector<double> probabilities;  // by original choice; empty: not multiple choice
  std::vector<int64_t> label_ids;     // kept for dumps only
  std::vector<double> label_logprobs;
  int64_t num_labels = 0;
};

struct EvalResult {
  int64_t num_samples = 0, num_choice_samples = 0, num_answered = 0, num_correct = 0;
  int64_t num_not_finite = 0;                                // samples that the model gave no numbers for
  int64_t num_labels = 0;                                    // 0: `loss` says nothing
  double loss = 0;                                           // weighted as the stage weights tokens
  double accuracy = 0, accuracy_low = 0, accuracy_high = 0;  // Wilson, 95 %; of the answered ones; NaN: not all finite
  std::vector<std::vector<int64_t>> confusion;               // [answer][choice]
  struct Bin {
    double confidence = 0, accuracy = 0;  // means
    int64_t count = 0;
  };
  std::vector<Bin> reliability;  // ten bins of the chosen probability
  double expected_calibration_error = 0;
  std::vector<JudgedSample> samples;  // in the order of the dataset, on every rank
  double seconds = 0;
  bool complete = true;  // false: a rank was asked to stop; nothing else of the result holds
};

struct EvalOptions {
  int64_t seq_len = 2048;
  int64_t rows_per_forward = 1;
  BatchSpec batch;
  int64_t reader_threads = 1, prefetch_batches = 2;  // pictures are prepared ahead
  int shuffles = 1;
  uint64_t seed = 0;
  std::string dump, submission;  // files; empty: none. Not written where samples are not finite
  bool show_progress = false;
  std::function<bool()> stop_requested = {};  // asked once a forward; ranks agree. Null: never
};

/// One forward a sample (times shuffles). Choice probabilities are sums over the token variants of each letter, upper
/// case where the sample's own answer is, normalised over the choices. With shuffles > 1 the choices are shown in that
/// many orders, the order is undone and the probabilities are averaged; the loss is of the order given. Rows are cut
/// and dealt to data parallel ranks in the same way whatever their number, and results are put together in the order of
/// the samples: bit-identical for any number of them. Collective over the control group. errors: kData for a sample
/// that cannot be read, kIo for the files
EvalResult evaluate(const Vlm& model, const Dataset& dataset, const SampleEncoder& encoder, const EvalOptions& options);

/// Pure: statistics over samples in order.
EvalResult summarise(const std::vector<JudgedSample>& samples);
/// errors: kNumeric where the model gave no numbers for some samples: nothing was measured
void require_finite(const EvalResult& result);
/// Score interval of a share. source: Wilson, JASA 22 (1927)
void wilson_interval(int64_t hits, int64_t trials, double& low, double& high);

/// {"id", "choices": probabilities, "margin", "choice", "answer", "label_ids", "label_logprobs"}; choice fields only
/// where there are choices, "answer" only where it is known.
std::string dump_line(const std::string& id, const JudgedSample& sample);
/// "id,answer", quoted where CSV asks for it.
std::string submission_line(const std::string& id, const JudgedSample& sample);
std::string to_json(const EvalResult& result);
/// "24 samples, loss 0.5775, accuracy 91.67 % (74.15 to 97.68), 0.1 s"
std::string short_text(const EvalResult& result);
/// Lines for people: the same and the confusion table.
std::string to_text(const EvalResult& result);

}  // namespace hanok
