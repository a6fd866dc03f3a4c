// Which layers the pieces of a pipeline hold where the config leaves it open: by the FLOPs of model/cost.h.
#pragma once

#include <vector>

#include "model/cost.h"
#include "model/pieces.h"

namespace hanok {

/// Which of the pieces a product is done on.
size_t piece_of(const Product& product, const std::vector<PieceRange>& pieces);

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

/// The same for the pieces of a pipeline, several of which may lie on one rank: the largest sum over a rank is least
/// (by moves of single layers), then the squares of these sums, then those of the pieces, which pass work to each
/// other.
std::vector<int64_t> balanced_pieces(const LayerCosts& costs, const PipelineShape& shape);

/// Fills in what the layout leaves open: pp_layers, and piece_flops. Nothing where it has no pipeline.
void balance_pipeline(const ModelConfig& config, const std::vector<Product>& products, ParallelConfig& layout);

}  // namespace hanok
