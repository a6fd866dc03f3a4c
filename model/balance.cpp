#include "model/balance.h"

#include "model/pieces.h"

namespace hanok {

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

std::vector<int64_t> balanced_layers(const ModelConfig& config,
                                     const ParallelConfig& layout,
                                     const std::vector<Product>& products) {
  if (layout.pp == 1 || !layout.pp_layers.empty()) return layout.pp_layers;
  const int pieces = pipeline_shape(layout).pieces();
  cut_pieces(config, pieces, {});  // says so where there are too many
  return balanced_parts(layer_costs(config.decoder.layers, products), pieces);
}

}  // namespace hanok
