#include "model/pieces.h"

#include <numeric>

#include "base/error.h"

namespace hanok {
namespace {

/// Multiplications of a forward and backward for one token of a row, as model/cost.h counts them.
struct Costs {
  double layer = 0, before = 0, after = 0;
};

/// What a plan supposes: rows of 4,096 tokens, half of them from pictures of 1,024 patches where there is a tower.
Costs costs_of(const ModelConfig& config) {
  constexpr double kRow = 4096, kPatches = 1024;
  const DecoderConfig& d = config.decoder;
  const double width = static_cast<double>(d.hidden);
  const double heads = static_cast<double>(d.heads * d.head_dim), kv = static_cast<double>(d.kv_heads * d.head_dim);
  Costs costs;
  costs.layer = width * (2 * heads + 2 * kv) + 3 * width * static_cast<double>(d.ffn) + kRow * heads;
  double labels = 1;
  if (config.tower.type != "none") {
    labels = 0.5;
    const TowerConfig& t = config.tower;
    const double w = static_cast<double>(t.hidden), merge = static_cast<double>(config.connector.merge);
    const double merged = w * merge * merge;
    const double block = 4 * w * w + 2 * w * static_cast<double>(t.ffn) + 2 * kPatches * w;
    const double mergers = static_cast<double>(1 + config.taps.size()) * (merged * merged + merged * width);
    costs.before = 0.5 * (merge * merge * static_cast<double>(t.depth) * block + mergers);
  }
  costs.after = labels * width * static_cast<double>(d.vocab) * 4 / 3;  // the loss multiplies for its logits twice
  return costs;
}

int64_t sum_of(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

}  // namespace

PipelineShape pipeline_shape(const ParallelConfig& layout) {
  if (layout.pp == 1) return {};
  PipelineShape shape{.schedule = schedule_of(layout.schedule), .ranks = static_cast<int>(layout.pp)};
  const bool has_chunks = shape.schedule == Schedule::kInterleaved || shape.schedule == Schedule::kZeroBubbleV;
  shape.chunks = static_cast<int>(layout.chunks > 0 ? layout.chunks : has_chunks ? 2 : 1);
  const bool fits = shape.schedule == Schedule::kInterleaved   ? shape.chunks >= 1
                    : shape.schedule == Schedule::kZeroBubbleV ? shape.chunks == 2
                                                               : shape.chunks == 1;
  HANOK_REQUIRE(fits, kConfig) << "parallel.chunks: got " << shape.chunks << " with schedule " << layout.schedule
                               << ", expected " << (has_chunks ? 2 : 1)
                               << "; only interleaved takes any number; set chunks: 0, or schedule: interleaved";
  return shape;
}

std::vector<int64_t> balanced_parts(int64_t items, double each, int parts, double before, double after) {
  struct Score {
    double largest = 0, squares = 0;
    int64_t size = 0;  // of the last part
    bool operator<(const Score& other) const {
      return std::pair(largest, squares) < std::pair(other.largest, other.squares);
    }
  };
  const Score none{.largest = 1e300, .squares = 1e300};
  // best[k][n]: the first k parts hold n items.
  std::vector<std::vector<Score>> best(parts + 1, std::vector<Score>(items + 1, none));
  best[0][0] = {};
  for (int k = 1; k <= parts; ++k) {
    const bool is_end = k == 1 || k == parts;
    const double extra = (k == 1 ? before : 0) + (k == parts ? after : 0);
    for (int64_t n = 0; n <= items; ++n) {
      for (int64_t size = is_end ? 0 : 1; size <= n; ++size) {
        const Score& rest = best[k - 1][n - size];
        if (rest.largest == none.largest) continue;
        const double cost = extra + each * static_cast<double>(size);
        const Score score{std::max(rest.largest, cost), rest.squares + cost * cost, size};
        if (score < best[k][n]) best[k][n] = score;
      }
    }
  }
  std::vector<int64_t> out(parts);
  for (int64_t k = parts, n = items; k > 0; --k) {
    out[k - 1] = best[k][n].size;
    n -= out[k - 1];
  }
  return out;
}

std::vector<PieceRange> cut_pieces(const ModelConfig& config, int pieces, const std::vector<int64_t>& given) {
  const int64_t layers = config.decoder.layers;
  std::vector<int64_t> sizes = given;
  if (given.empty() || pieces == 1) {
    HANOK_REQUIRE(pieces == 1 || pieces <= layers + 2, kConfig)
        << "pipeline: got " << pieces << " pieces (parallel.pp x chunks) for " << layers << " decoder layers, expected "
        << "at most " << layers + 2
        << ": every piece but the first and the last needs a layer; lower parallel.pp or parallel.chunks";
    const Costs costs = costs_of(config);
    sizes = balanced_parts(layers, costs.layer, pieces, costs.before, costs.after);
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
