// What one training or evaluation example is after import: token ids with the places of its pictures.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dataio/tokenizer.h"

namespace hanok {

/// One picture or video of a sample.
struct VisionItem {
  bool is_video = false;
  int64_t t = 1, h = 0, w = 0;        // patch grid after resizing (t temporal patches)
  std::vector<int64_t> token_begins;  // first placeholder token of each temporal patch; each spans h*w/merge^2 tokens
  std::vector<std::vector<uint8_t>>
      frames;  // encoded files, or the resized picture as raw uint8, rows of RGB pixels (see frames_are_raw)
  bool frames_are_raw = false;
};

struct Sample {
  std::string id;
  std::vector<int32_t> tokens;
  std::vector<Span> labels;  // token spans the assistant must produce; one span per assistant turn
  std::vector<VisionItem> vision;
  int num_choices = 0;               // > 0: multiple choice; the answer letter is the first label token
  int answer = -1;                   // index of the right choice, as shown; -1: not given
  std::string question;              // of a multiple choice, as in the file, so that it can be shown in another order
  std::vector<std::string> choices;  // in the file's order
  std::vector<int> permutation;      // shown position -> position in the file; empty: as in the file
  int64_t num_label_tokens() const {
    int64_t n = 0;
    for (const Span& span : labels) n += span.end - span.begin;
    return n;
  }
};

}  // namespace hanok
