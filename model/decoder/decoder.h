// Token stream -> hidden states.
#pragma once

#include <vector>

#include "base/tensor.h"
#include "model/execution.h"
#include "model/loss/cross_entropy.h"

namespace hanok {

struct DecoderInput {
  Tensor x_TD;                  // embedded tokens with vision tokens written in; full layout
  Tensor position_3T;           // full T
  Tensor row_starts;            // int32 [S + 1], host
  std::vector<Tensor> taps_MD;  // added after layers 0, 1, ... at vision_index_M; full layout
  Tensor vision_index_M;        // full T indices
};

class Decoder {
 public:
  virtual ~Decoder() = default;
  /// tokens_T -> x_TD, full layout.
  virtual Tensor embed(const Tensor& tokens_T) const = 0;
  /// -> y_TD after the final norm, sequence layout.
  virtual Tensor forward(const DecoderInput& input, const Execution& execution) const = 0;
  /// Local rows of the output head (of the embedding when tied).
  virtual VocabShard head() const = 0;
};

}  // namespace hanok
