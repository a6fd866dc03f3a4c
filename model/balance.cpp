#include "model/balance.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "model/pieces.h"

namespace hanok {

size_t piece_of(const Product& product, const std::vector<PieceRange>& pieces) {
  switch (product.part) {
    case Product::Part::kDecoder:
    case Product::Part::kAttention:
      for (const PieceRange& range : pieces)
        if (product.layer < range.last) return range.piece;
      return pieces.size() - 1;
    case Product::Part::kHead: return pieces.size() - 1;
    default: return 0;
  }
}

LayerCosts layer_costs(int64_t layers, const std::vector<Product>& products) {
  LayerCosts costs{.layers = std::vector<double>(layers)};
  for (const Product& product : products) {
    const double flops = product.flops.total() + product.flops.again;
    switch (product.part) {
      case Product::Part::kDecoder:
      case Product::Part::kAttention: costs.layers.at(product.layer) += flops; break;
      case Product::Part::kHead: costs.after += flops; break;
      default: costs.before += flops;
    }
  }
  return costs;
}

std::vector<int64_t> balanced_parts(const LayerCosts& costs, int parts) {
  struct Score {
    double largest = 0, squares = 0;
    int64_t size = 0;  // of the last part
    bool operator<(const Score& other) const {
      return std::pair(largest, squares) < std::pair(other.largest, other.squares);
    }
  };
  const auto layers = static_cast<int64_t>(costs.layers.size());
  std::vector<double> before(layers + 1);  // costs of the layers before each
  for (int64_t i = 0; i < layers; ++i) before[i + 1] = before[i] + costs.layers[i];
  const Score none{.largest = 1e300, .squares = 1e300};
  // best[k][n]: the first k parts hold n layers.
  std::vector<std::vector<Score>> best(parts + 1, std::vector<Score>(layers + 1, none));
  best[0][0] = {};
  for (int k = 1; k <= parts; ++k) {
    const bool is_end = k == 1 || k == parts;
    const double extra = (k == 1 ? costs.before : 0) + (k == parts ? costs.after : 0);
    for (int64_t n = 0; n <= layers; ++n) {
      for (int64_t size = is_end ? 0 : 1; size <= n; ++size) {
        const Score& rest = best[k - 1][n - size];
        if (rest.largest == none.largest) continue;
        const double cost = extra + before[n] - before[n - size];
        const Score score{std::max(rest.largest, cost), rest.squares + cost * cost, size};
        if (score < best[k][n]) best[k][n] = score;
      }
    }
  }
  std::vector<int64_t> out(parts);
  for (int64_t k = parts, n = layers; k > 0; --k) {
    out[k - 1] = best[k][n].size;
    n -= out[k - 1];
  }
  return out;
}

namespace {

/// What balanced_pieces() makes least, the first one first.
using PieceScore = std::array<double, 3>;

PieceScore score_of(const LayerCosts& costs, const PipelineShape& shape, const std::vector<int64_t>& sizes) {
  std::vector<double> of_rank(shape.ranks);
  PieceScore score{};
  size_t layer = 0;
  for (int piece = 0; piece < shape.pieces(); ++piece) {
    double cost = (piece == 0 ? costs.before : 0) + (piece + 1 == shape.pieces() ? costs.after : 0);
    for (int64_t i = 0; i < sizes[piece]; ++i) cost += costs.layers[layer++];
    of_rank[place_of(shape, piece).rank] += cost;
    score[2] += cost * cost;
  }
  for (const double cost : of_rank) {
    score[0] = std::max(score[0], cost);
    score[1] += cost * cost;
  }
  return score;
}

/// Sums in another order differ in their last bits, which must not move layers to and fro.
bool is_better(const PieceScore& a, const PieceScore& b) {
  constexpr double kSame = 1e-9;
  for (size_t i = 0; i < a.size(); ++i)
    if (std::abs(a[i] - b[i]) > kSame * b[i]) return a[i] < b[i];
  return false;
}

}  // namespace

std::vector<int64_t> balanced_pieces(const LayerCosts& costs, const PipelineShape& shape) {
  const int pieces = shape.pieces();
  std::vector<int64_t> sizes = balanced_parts(costs, pieces);
  if (shape.chunks == 1) return sizes;
  PieceScore score = score_of(costs, shape, sizes);
  for (bool moved = true; moved;) {
    moved = false;
    std::vector<int64_t> best;
    for (int from = 0; from < pieces; ++from) {
      if (sizes[from] <= (from == 0 || from + 1 == pieces ? 0 : 1)) continue;
      for (int to = 0; to < pieces; ++to) {
        if (to == from) continue;
        std::vector<int64_t> tried = sizes;
        --tried[from];
        ++tried[to];
        const PieceScore of_tried = score_of(costs, shape, tried);
        if (!is_better(of_tried, score)) continue;
        score = of_tried;
        best = std::move(tried);
        moved = true;
      }
    }
    if (moved) sizes = std::move(best);
  }
  return sizes;
}

void balance_pipeline(const ModelConfig& config, const std::vector<Product>& products, ParallelConfig& layout) {
  layout.piece_flops.clear();
  if (layout.pp == 1) return;
  const PipelineShape shape = pipeline_shape(layout);
  if (layout.pp_layers.empty()) {
    cut_pieces(config, shape.pieces(), {});  // says so where there are too many
    layout.pp_layers = balanced_pieces(layer_costs(config.decoder.layers, products), shape);
  }
  const std::vector<PieceRange> pieces = cut_pieces(config, shape.pieces(), layout.pp_layers);
  layout.piece_flops.resize(3 * pieces.size());
  for (const Product& product : products) {
    PassFlops f = pass_flops(product);
    if (product.weight == nullptr) {
      // What an input gradient takes longer is of whole layers, attention included: half of attention's counts as
      // theirs.
      f.backward_weight = product.flops.backward / 2;
      f.backward_input -= f.backward_weight;
    }
    double* of_piece = &layout.piece_flops[3 * piece_of(product, pieces)];
    of_piece[0] += f.forward;
    of_piece[1] += f.backward_input;
    of_piece[2] += f.backward_weight;
  }
}

}  // namespace hanok
