#include "model/pieces.h"

#include <cmath>
#include <numeric>

#include "base/error.h"
#include "model/balance.h"

namespace hanok {
namespace {

/// Sublayers of each piece; empty if a number is no multiple of a half.
std::vector<int64_t> sublayers_of(const std::vector<double>& layers) {
  std::vector<int64_t> out;
  for (const double count : layers) {
    if (!std::isfinite(count) || std::abs(count) > 1e9 || 2 * count != std::floor(2 * count)) return {};
    out.push_back(static_cast<int64_t>(2 * count));
  }
  return out;
}

}  // namespace

std::optional<int64_t> layer_of(std::string_view name) {
  constexpr std::string_view kLayers = ".layers.";
  const size_t at = name.find(kLayers);
  if (at == std::string_view::npos) return std::nullopt;
  name.remove_prefix(at + kLayers.size());
  return std::stoll(std::string(name.substr(0, name.find('.'))));
}

std::optional<int64_t> sublayer_of(std::string_view name) {
  if (!name.starts_with("decoder.")) return std::nullopt;
  const std::optional<int64_t> layer = layer_of(name);
  if (!layer) return std::nullopt;
  const bool is_attention = name.starts_with(concat("decoder.layers.", *layer, ".attn"));
  return is_attention ? Sublayer::attention(*layer) : Sublayer::mlp(*layer);
}

int64_t most_pieces(const ModelConfig& config) {
  return Sublayer::count(config.decoder.layers) + 2;
}

PipelineShape pipeline_shape(const ParallelConfig& layout) {
  if (layout.pp == 1) return {};
  PipelineShape shape{.schedule = schedule_of(layout.schedule),
                      .ranks = static_cast<int>(layout.pp),
                      .room = static_cast<int>(layout.pp_room)};
  const bool has_chunks = shape.schedule == Schedule::kInterleaved || shape.schedule == Schedule::kZeroBubbleV;
  shape.chunks = static_cast<int>(layout.chunks > 0 ? layout.chunks : has_chunks ? 2 : 1);
  const bool fits = shape.schedule == Schedule::kInterleaved   ? shape.chunks >= 1
                    : shape.schedule == Schedule::kZeroBubbleV ? shape.chunks == 2
                                                               : shape.chunks == 1;
  HANOK_REQUIRE(fits, kConfig) << "parallel.chunks: got " << shape.chunks << " with schedule " << layout.schedule
                               << ", expected " << (has_chunks ? 2 : 1)
                               << "; only interleaved takes any number; set chunks: 0, or schedule: interleaved";
  if (layout.piece_costs.size() == 3 * static_cast<size_t>(shape.pieces()))
    for (int piece = 0; piece < shape.pieces(); ++piece) {
      const double* costs = &layout.piece_costs[3 * piece];
      shape.costs.push_back({costs[0], costs[1], costs[2]});
    }
  return shape;
}

std::vector<PieceRange> cut_pieces(const ModelConfig& config, int pieces, const std::vector<double>& given) {
  const int64_t count = Sublayer::count(config.decoder.layers);
  std::vector<int64_t> sizes = sublayers_of(given);
  if (given.empty() || pieces == 1) {
    HANOK_REQUIRE(pieces == 1 || pieces <= most_pieces(config), kConfig)
        << "pipeline: got " << pieces << " pieces (parallel.pp x chunks) for " << config.decoder.layers
        << " decoder layers, expected at most " << most_pieces(config)
        << ": every piece but the first and the last needs half a layer; lower parallel.pp or parallel.chunks";
    sizes = balanced_parts({.sublayers = std::vector<PassCosts>(count, {.forward = 1})}, pieces);
  }
  bool fits =
      static_cast<int>(sizes.size()) == pieces && std::accumulate(sizes.begin(), sizes.end(), int64_t{0}) == count;
  for (int piece = 0; fits && piece < pieces; ++piece)
    fits = sizes[piece] >= (piece == 0 || piece + 1 == pieces ? 0 : 1);
  HANOK_REQUIRE(fits, kConfig)
      << "parallel.pp_layers: got " << c10::ArrayRef<double>(given) << ", expected " << pieces
      << " numbers (pp x chunks), whole or with a half, that add up to " << config.decoder.layers
      << " decoder layers, above 0 but for the first and the last; leave it empty to balance by cost";
  std::vector<PieceRange> out;
  int64_t first = 0;
  for (int piece = 0; piece < pieces; first += sizes[piece++])
    out.push_back({.piece = piece,
                   .first = first,
                   .last = first + sizes[piece],
                   .is_first = piece == 0,
                   .is_last = piece + 1 == pieces});
  return out;
}

int piece_with(int64_t sublayer, const std::vector<PieceRange>& pieces) {
  for (const PieceRange& range : pieces)
    if (sublayer < range.last) return range.piece;
  return pieces.back().piece;
}

}  // namespace hanok
