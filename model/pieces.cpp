#include "model/pieces.h"

#include <numeric>

#include "base/error.h"
#include "model/balance.h"

namespace hanok {
namespace {

int64_t sum_of(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

}  // namespace

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
  if (layout.piece_flops.size() == 3 * static_cast<size_t>(shape.pieces()))
    for (int piece = 0; piece < shape.pieces(); ++piece) {
      const double* flops = &layout.piece_flops[3 * piece];
      shape.flops.push_back({flops[0], flops[1], flops[2]});
    }
  return shape;
}

std::vector<PieceRange> cut_pieces(const ModelConfig& config, int pieces, const std::vector<int64_t>& given) {
  const int64_t layers = config.decoder.layers;
  std::vector<int64_t> sizes = given;
  if (given.empty() || pieces == 1) {
    HANOK_REQUIRE(pieces == 1 || pieces <= layers + 2, kConfig)
        << "pipeline: got " << pieces << " pieces (parallel.pp x chunks) for " << layers << " decoder layers, expected "
        << "at most " << layers + 2
        << ": every piece but the first and the last needs a layer; lower parallel.pp or parallel.chunks";
    sizes = balanced_parts({.layers = std::vector<double>(layers, 1.0)}, pieces);
  }
  bool fits = static_cast<int>(sizes.size()) == pieces && sum_of(sizes) == layers;
  for (int piece = 0; fits && piece < pieces; ++piece)
    fits = sizes[piece] >= (piece == 0 || piece + 1 == pieces ? 0 : 1);
  HANOK_REQUIRE(fits, kConfig)
      << "parallel.pp_layers: got " << sizes << ", expected " << pieces << " numbers (pp x chunks) that add up to "
      << layers << " decoder layers, above 0 but for the first and the last; leave it empty to balance by cost";
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

}  // namespace hanok
