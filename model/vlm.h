// A vision-language model: tower x connector x decoder.
// forward: pixels_PC -> tower -> features_PW (+ taps) -> connector -> tokens_MD -> written over placeholder positions
// of x_TD
//          -> decoder (taps added after its first layers) -> y_TD
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "model/execution.h"
#include "model/loss/cross_entropy.h"
#include "model/module.h"

namespace hanok {

/// Tensor handles of one micro-batch, on the model's device. Every tp rank is given the same ones.
struct ModelInput {
  Tensor tokens_T;        // int64
  Tensor position_3T;     // int64
  Tensor row_starts;      // int32 [S + 1], on the host
  Tensor pixels_PC;       // f32 [P, C]; P = 0 without pictures
  Tensor grid_I3;         // int64 [I, 3], on the host
  Tensor vision_index_M;  // int64
};

struct ModelOutput {
  Tensor y_TD;  // final hidden states after the last norm, sequence layout (local rows when sequence parallelism is on)
};

class Vlm {
 public:
  /// Builds and declares every weight of this rank's part; values are uninitialised until weights are loaded or
  /// initialised. errors: kConfig from the registry and the plan; kShape from ParamSpec
  Vlm(const ModelConfig& config, const Groups& groups, at::ScalarType dtype, at::Device device);
  ~Vlm();
  const ModelConfig& config() const;
  ParamTable& params();
  const ParamTable& params() const;
  void set_execution(const Execution& execution);
  /// errors: kShape if vision tokens and placeholders differ in number (both counts are named)
  ModelOutput forward(const ModelInput& input) const;
  /// The output head (the embedding when tied), for loss/cross_entropy.h.
  VocabShard head() const;
  const Groups& groups() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Random weights keyed by (seed, name, global index).
void initialise(Vlm& model, uint64_t seed);

}  // namespace hanok
