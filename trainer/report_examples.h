// Held-out samples worth looking at, with small pictures, for report.html. Private to trainer/.
#pragma once

#include <string>
#include <vector>

#include "dataio/dataset.h"
#include "dataio/pack.h"
#include "trainer/evaluate.h"

namespace hanok {

struct ReportExample {
  std::string id;
  std::vector<std::string> pictures;  // data URIs
  int64_t num_pictures = 0;           // of the sample; more than are shown, perhaps
  std::string question;               // of a multiple choice; else the text before the first answer
  std::vector<std::string> choices;
  std::vector<double> probabilities;  // of the choices
  int answer = -1;                    // -1: not given
  std::string reference;              // without choices: what was to be said
  double loss = 0;                    // per label; NaN: no label
};

/// At most `count` samples, the same ones for the same judgements: the mistakes that the model was surest of (about
/// half), then the right answers it was least sure of, then the surest; without choices those of highest and lowest
/// loss.
std::vector<int64_t> telling_samples(const std::vector<JudgedSample>& samples, int64_t count);

/// Reads them, and makes JPEG pictures of at most 224 pixels a side, four a sample.
/// errors: kData for a sample or a picture that cannot be read
std::vector<ReportExample> report_examples(const Dataset& dataset,
                                           const std::vector<JudgedSample>& samples,
                                           const SampleEncoder& encoder,
                                           const ImageLimits& limits);

}  // namespace hanok
