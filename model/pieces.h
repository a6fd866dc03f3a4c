// A model cut along its layers: which piece of a pipeline holds what.
#pragma once

#include <vector>

#include "configs/schema/config.h"
#include "parallel/pipeline_schedule.h"

namespace hanok {

/// Decoder layers [first, last). The first piece holds the vision parts and the embedding as well, the last one the
/// final norm and the head. Layers keep their global index.
struct PieceRange {
  int piece = 0;
  int64_t first = 0, last = 0;
  bool is_first = true, is_last = true;
};

/// Schedule, chunks and FLOPs of the pieces of a layout; one piece where pp is 1. errors: kConfig for chunks that the
/// schedule does not have
PipelineShape pipeline_shape(const ParallelConfig& layout);

/// All pieces in order. `layers`: of each piece, as parallel.pp_layers says; empty: as many in each, as far as it goes
/// (who knows the work fills it in by model/balance.h). The first and the last piece may have no layer.
/// errors: kConfig if there are more pieces than that, or `layers` does not add up
std::vector<PieceRange> cut_pieces(const ModelConfig& config, int pieces, const std::vector<int64_t>& layers);

}  // namespace hanok
