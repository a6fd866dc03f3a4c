#include "model/balance.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "model/pieces.h"

namespace hanok {
namespace {

/// None: before or behind the decoder's layers.
std::optional<int64_t> sublayer_with(const Product& product) {
  switch (product.part) {
    case Product::Part::kAttention: return Sublayer::attention(product.layer);
    case Product::Part::kDecoder: return sublayer_of(product.weight->name);
    default: return std::nullopt;
  }
}

}  // namespace

size_t piece_of(const Product& product, const std::vector<PieceRange>& pieces) {
  if (product.part == Product::Part::kHead) return pieces.size() - 1;
  const std::optional<int64_t> sublayer = sublayer_with(product);
  return sublayer ? piece_with(*sublayer, pieces) : 0;
}

SublayerCosts sublayer_flops(int64_t layers, const std::vector<Product>& products) {
  SublayerCosts costs{.sublayers = std::vector<PassCosts>(Sublayer::count(layers))};
  for (const Product& product : products) {
    PassCosts passes = pass_flops(product);
    if (product.weight == nullptr) {
      // What an input gradient takes longer is of whole layers, attention included: half of attention's counts as
      // theirs.
      passes.backward_weight = product.flops.backward / 2;
      passes.backward_input -= passes.backward_weight;
    }
    const std::optional<int64_t> sublayer = sublayer_with(product);
    PassCosts& sum = sublayer                               ? costs.sublayers.at(*sublayer)
                     : product.part == Product::Part::kHead ? costs.after
                                                            : costs.before;
    sum += {.forward = passes.forward * kTypicalCosts.forward,
            .backward_input = passes.backward_input * kTypicalCosts.backward_input,
            .backward_weight = passes.backward_weight * kTypicalCosts.backward_weight};
  }
  return costs;
}

namespace {

/// Costs of the sublayers before each, and of all.
std::vector<double> sums_before(const SublayerCosts& costs) {
  std::vector<double> before(costs.sublayers.size() + 1);
  for (size_t i = 0; i < costs.sublayers.size(); ++i) before[i + 1] = before[i] + costs.sublayers[i].all();
  return before;
}

}  // namespace

std::vector<int64_t> balanced_parts(const SublayerCosts& costs, int parts) {
  struct Score {
    double largest = 0, squares = 0;
    int64_t size = 0;  // of the last part
    bool operator<(const Score& other) const {
      return std::pair(largest, squares) < std::pair(other.largest, other.squares);
    }
  };
  const auto count = static_cast<int64_t>(costs.sublayers.size());
  const std::vector<double> before = sums_before(costs);
  const Score none{.largest = 1e300, .squares = 1e300};
  // best[k][n]: the first k parts hold n sublayers.
  std::vector<std::vector<Score>> best(parts + 1, std::vector<Score>(count + 1, none));
  best[0][0] = {};
  for (int k = 1; k <= parts; ++k) {
    const bool is_end = k == 1 || k == parts;
    const double extra = (k == 1 ? costs.before.all() : 0) + (k == parts ? costs.after.all() : 0);
    for (int64_t n = 0; n <= count; ++n) {
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
  for (int64_t k = parts, n = count; k > 0; --k) {
    out[k - 1] = best[k][n].size;
    n -= out[k - 1];
  }
  return out;
}

namespace {

/// What balanced_pieces() makes least, the first one first.
using PieceScore = std::array<double, 3>;

class PieceScorer {
 public:
  PieceScorer(const SublayerCosts& costs, const PipelineShape& shape)
      : before_(sums_before(costs)), first_(costs.before.all()), last_(costs.after.all()), of_rank_(shape.ranks) {
    for (int piece = 0; piece < shape.pieces(); ++piece) ranks_.push_back(place_of(shape, piece).rank);
  }

  PieceScore operator()(const std::vector<int64_t>& sizes) {
    std::fill(of_rank_.begin(), of_rank_.end(), 0);
    PieceScore score{};
    int64_t at = 0;
    for (size_t piece = 0; piece < sizes.size(); ++piece) {
      double cost = before_[at + sizes[piece]] - before_[at];
      at += sizes[piece];
      if (piece == 0) cost += first_;
      if (piece + 1 == sizes.size()) cost += last_;
      of_rank_[ranks_[piece]] += cost;
      score[2] += cost * cost;
    }
    for (const double cost : of_rank_) {
      score[0] = std::max(score[0], cost);
      score[1] += cost * cost;
    }
    return score;
  }

 private:
  std::vector<double> before_;
  double first_, last_;
  std::vector<double> of_rank_;
  std::vector<int> ranks_;
};

/// Sums in another order differ in their last bits, which must not move layers to and fro.
bool is_better(const PieceScore& a, const PieceScore& b) {
  constexpr double kSame = 1e-9;
  for (size_t i = 0; i < a.size(); ++i)
    if (std::abs(a[i] - b[i]) > kSame * b[i]) return a[i] < b[i];
  return false;
}

}  // namespace

std::vector<int64_t> balanced_pieces(const SublayerCosts& costs, const PipelineShape& shape) {
  const int pieces = shape.pieces();
  std::vector<int64_t> sizes = balanced_parts(costs, pieces);
  if (shape.chunks == 1) return sizes;
  PieceScorer score_of(costs, shape);
  PieceScore score = score_of(sizes);
  constexpr int64_t kFarthest = 4;  // sublayers in one move
  for (bool moved = true; moved;) {
    moved = false;
    std::vector<int64_t> best, tried = sizes;
    for (int from = 0; from < pieces; ++from) {
      const int64_t least = from == 0 || from + 1 == pieces ? 0 : 1;
      for (int to = 0; to < pieces; ++to) {
        for (int64_t count = 1; to != from && count <= std::min(kFarthest, sizes[from] - least); ++count) {
          tried[from] -= count;
          tried[to] += count;
          const PieceScore of_tried = score_of(tried);
          if (is_better(of_tried, score)) {
            score = of_tried;
            best = tried;
            moved = true;
          }
          tried[from] += count;
          tried[to] -= count;
        }
      }
    }
    if (moved) sizes = std::move(best);
  }
  return sizes;
}

void balance_pipeline(const ModelConfig& config, const SublayerCosts& costs, ParallelConfig& layout) {
  layout.piece_costs.clear();
  if (layout.pp == 1) return;
  const PipelineShape shape = pipeline_shape(layout);
  if (layout.pp_layers.empty()) {
    cut_pieces(config, shape.pieces(), {});  // says so where there are too many
    for (const int64_t size : balanced_pieces(costs, shape)) layout.pp_layers.push_back(static_cast<double>(size) / 2);
  }
  for (const PieceRange& range : cut_pieces(config, shape.pieces(), layout.pp_layers)) {
    PassCosts sum;
    if (range.is_first) sum += costs.before;
    for (int64_t i = range.first; i < range.last; ++i) sum += costs.sublayers.at(i);
    if (range.is_last) sum += costs.after;
    layout.piece_costs.insert(layout.piece_costs.end(), {sum.forward, sum.backward_input, sum.backward_weight});
  }
}

}  // namespace hanok
