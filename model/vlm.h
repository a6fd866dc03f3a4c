// A vision-language model: tower x connector x decoder.
// forward: pixels_PC -> tower -> features_PW (+ taps) -> connector -> tokens_MD -> written over placeholder positions
// of x_TD
//          -> decoder (taps added after its first layers) -> y_TD
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "model/execution.h"
#include "model/layers/routing.h"
#include "model/loss/cross_entropy.h"
#include "model/module.h"
#include "model/vision_cut.h"

namespace hanok {

/// Tensor handles of one micro-batch, on the model's device. Every tp rank is given the same ones. With context
/// parallelism T are the rows that this cp rank holds, and P the patches that it turns into features.
struct ModelInput {
  Tensor tokens_T;                   // int64
  Tensor position_3T;                // int64
  Tensor row_starts;                 // int32 [S + 1], on the host, of the rows of all cp ranks
  Tensor pixels_PC;                  // f32 [P, C]; P = 0 without pictures; undefined where has_entry() is not
  Tensor grid_I3;                    // int64 [I, 3], on the host
  Tensor vision_index_M;             // int64: row of this rank that receives each vision token
  RowCut cut;                        // empty: this rank holds all rows
  std::shared_ptr<Routing> routing;  // what layers with experts record; null: nothing
  VisionExchange vision;  // how vision tokens get from the ranks that made them to the rows that receive them
};

struct ModelOutput {
  Tensor y_TD;  // final hidden states after the last norm, sequence layout (local rows when sequence parallelism is on)
};

struct DecoderInput;

class Vlm {
 public:
  /// Builds and declares every weight of this rank's part; values are uninitialised until weights are loaded or
  /// initialised. errors: kConfig from the registry and the plan; kShape from ParamSpec
  /// `layout`: schedule, chunks and layers of the pieces of a pipeline; its sizes are those of `groups`.
  Vlm(const ModelConfig& config,
      const Groups& groups,
      at::ScalarType dtype,
      at::Device device,
      const ParallelConfig& layout = {});
  ~Vlm();
  const ModelConfig& config() const;
  ParamTable& params();
  const ParamTable& params() const;
  /// The table of the whole model, the same on every rank: params() itself where one rank of pp holds all of it, else
  /// one without values. `trainable` is right in both after freeze().
  ParamTable& whole();
  const ParamTable& whole() const;
  void set_execution(const Execution& execution);
  /// errors: kShape if vision tokens and placeholders differ in number (both counts are named)
  /// For a model of one piece.
  ModelOutput forward(const ModelInput& input) const;

  /// How the model is cut into pieces, and where they lie.
  const PipelineShape& pipeline() const;
  const std::vector<PieceRange>& pieces() const;
  /// What the pieces take: lists are made for that from here on (PipelineShape::measured). The same on every rank.
  void set_measured_costs(std::vector<PassCosts> costs);
  /// Empty tensors like those that enter a piece of this micro-batch: x_TD in sequence layout, then the DeepStack
  /// features that come behind its own and later MLPs; none for the first piece.
  std::vector<Tensor> stream_into(int piece, const ModelInput& input) const;
  /// One piece of this rank: what enters -> what leaves for the next one; of the last piece y_TD alone.
  std::vector<Tensor> run_piece(int piece, const ModelInput& input, const std::vector<Tensor>& stream) const;
  /// The piece that a weight belongs to (a tied table: the first).
  int piece_of_weight(const std::string& name) const;
  /// Puts the weight gradients of the coming backwards off, or no longer, where the schedule splits them off; and what
  /// adds those that were.
  void defer_weight_gradients(bool on);
  std::function<void()> take_weight_gradients();
  /// Whether this rank of pp holds the first piece: there pixels are read.
  bool has_entry() const;
  /// The rank of pp that holds the last piece, and whether this is it: there the head is, and losses are known.
  int last_rank() const;
  bool has_head() const;
  /// The output head (the embedding when tied), for loss/cross_entropy.h.
  VocabShard head() const;
  at::ScalarType dtype() const;
  at::Device device() const;
  const Groups& groups() const;

 private:
  struct State;
  DecoderInput enter(const ModelInput& input) const;
  std::unique_ptr<State> state_;
};

/// Random weights keyed by (seed, name, global index).
void initialise(Vlm& model, uint64_t seed);

}  // namespace hanok
