// Which layers the pieces of a pipeline hold where the config leaves it open: by the FLOPs of model/cost.h.
#pragma once

#include <vector>

#include "model/cost.h"

namespace hanok {

/// FLOPs of each decoder layer, of what lies before them (tower, connector) and behind them (head, loss); forward,
/// backward and what is run again.
struct LayerCosts {
  std::vector<double> layers;
  double before = 0, after = 0;
};

/// `products`: of a whole model, as products_of() counts them for a step.
LayerCosts layer_costs(int64_t layers, const std::vector<Product>& products);

/// Sizes of `parts` consecutive parts whose largest sum of costs is least, then the sum of squares. The first and the
/// last part may have no layer, the others have one at least; parts <= layers + 2.
std::vector<int64_t> balanced_parts(const LayerCosts& costs, int parts);

/// parallel.pp_layers for these products; what the layout says itself, and nothing where it has no pipeline.
std::vector<int64_t> balanced_layers(const ModelConfig& config,
                                     const ParallelConfig& layout,
                                     const std::vector<Product>& products);

}  // namespace hanok
