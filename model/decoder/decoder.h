// Token stream -> hidden states.
#pragma once

#include <vector>

#include "base/tensor.h"
#include "model/execution.h"
#include "model/layers/routing.h"
#include "model/loss/cross_entropy.h"
#include "model/pieces.h"
#include "model/row_cut.h"

namespace hanok {

struct DecoderInput {
  Tensor x_TD;                  // embedded tokens with vision tokens written in; full layout; T: rows of this cp rank
  Tensor position_3T;           // full T
  Tensor row_starts;            // int32 [S + 1], host, of the rows of all cp ranks
  std::vector<Tensor> taps_MD;  // added after layers 0, 1, ... at vision_index_M; full layout
  Tensor vision_index_M;        // full T indices
  RowCut cut;                   // which rows of the micro-batch these are; empty: all
  std::shared_ptr<Routing> routing;  // of layers with experts; null: nothing is recorded
};

class Decoder {
 public:
  virtual ~Decoder() = default;
  /// tokens_T -> x_TD, full layout.
  virtual Tensor embed(const Tensor& tokens_T) const = 0;
  /// One piece of a pipeline: x_TD enters in sequence layout where the piece is not the first, and leaves before the
  /// final norm where it is not the last; taps_MD begin with that of the piece's first MLP.
  virtual Tensor forward(const DecoderInput& input, const PieceRange& piece, const Execution& execution) const = 0;
  /// Local rows of the output head (of the embedding when tied).
  virtual VocabShard head() const = 0;
};

}  // namespace hanok
