// Which layers the pieces of a pipeline hold where the config leaves it open: by what they cost.
#pragma once

#include <vector>

#include "model/cost.h"
#include "model/pieces.h"

namespace hanok {

/// Which of the pieces a product is done on.
size_t piece_of(const Product& product, const std::vector<PieceRange>& pieces);

/// Of each sublayer of the decoder (model/pieces.h), of what lies before them (tower, connector) and behind them (head,
/// loss); with what is run again.
struct SublayerCosts {
  std::vector<PassCosts> sublayers;
  PassCosts before, after;
};

/// In FLOPs, the passes weighed by kTypicalCosts. `products`: of a whole model, as products_of() counts them for a
/// step.
SublayerCosts sublayer_flops(int64_t layers, const std::vector<Product>& products);

/// Numbers of sublayers of `parts` consecutive parts whose largest sum of costs is least, then the sum of squares. The
/// first and the last part may have none, the others have one at least; parts <= sublayers + 2.
std::vector<int64_t> balanced_parts(const SublayerCosts& costs, int parts);

/// The same for the pieces of a pipeline, several of which may lie on one rank: the largest sum over a rank is least
/// (by moves of up to two layers), then the squares of these sums, then those of the pieces, which pass work to each
/// other.
std::vector<int64_t> balanced_pieces(const SublayerCosts& costs, const PipelineShape& shape);

/// Fills in what the layout leaves open: pp_layers, and piece_costs. Nothing where it has no pipeline.
void balance_pipeline(const ModelConfig& config, const SublayerCosts& costs, ParallelConfig& layout);

}  // namespace hanok
