// A model cut along its sublayers: which piece of a pipeline holds what.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "configs/schema/config.h"
#include "parallel/pipeline_schedule.h"

namespace hanok {

/// A layer of the decoder is two sublayers: its attention, 2 i, and its MLP or experts, 2 i + 1, each with the norm
/// before it. A piece of a pipeline may end between them.
struct Sublayer {
  static int64_t attention(int64_t layer) { return 2 * layer; }
  static int64_t mlp(int64_t layer) { return 2 * layer + 1; }
  static int64_t count(int64_t layers) { return 2 * layers; }
};

/// Index of the layer, of tower or decoder, that a weight or module of this name lies in
/// ("tower.layers.3.mlp.up.weight"); none: in no layer.
std::optional<int64_t> layer_of(std::string_view name);
/// The sublayer that a weight or module of this name lies in ("decoder.layers.3.attn.qkv.weight"); none: before or
/// behind all of them.
std::optional<int64_t> sublayer_of(std::string_view name);

/// Indices [first, last).
struct IndexRange {
  int64_t first = 0, last = 0;
  int64_t size() const { return last - first; }
  bool contains(int64_t index) const { return first <= index && index < last; }
};

/// Sublayers [first, last) of the decoder. The first piece holds the vision parts and the embedding as well, the last
/// one the final norm and the head. Layers keep their global index.
struct PieceRange {
  int piece = 0;
  int64_t first = 0, last = 0;
  bool is_first = true, is_last = true;
  /// Layers whose attention, whose MLP, or any part of which lies here.
  IndexRange attentions() const { return {(first + 1) / 2, (last + 1) / 2}; }
  IndexRange mlps() const { return {first / 2, last / 2}; }
  IndexRange touched() const { return {first / 2, (last + 1) / 2}; }
  double layers() const { return static_cast<double>(last - first) / 2; }
};

/// Schedule, chunks and costs of the pieces of a layout; one piece where pp is 1. errors: kConfig for chunks that the
/// schedule does not have
PipelineShape pipeline_shape(const ParallelConfig& layout);

/// As many pieces as a model can be cut into: every one but the first and the last needs a sublayer.
int64_t most_pieces(const ModelConfig& config);

/// All pieces in order. `layers`: of each piece, in halves, as parallel.pp_layers says; empty: as many in each, as far
/// as it goes (who knows the work fills it in by model/balance.h). The first and the last piece may have none.
/// errors: kConfig if there are more pieces than that, or `layers` does not add up
std::vector<PieceRange> cut_pieces(const ModelConfig& config, int pieces, const std::vector<double>& layers);

/// Which of the pieces holds a sublayer.
int piece_with(int64_t sublayer, const std::vector<PieceRange>& pieces);

}  // namespace hanok
