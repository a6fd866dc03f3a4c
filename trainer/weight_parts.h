// Hugging Face tensors against the pieces that ranks hold. Private to trainer/.
#pragma once

#include <string>
#include <vector>

#include "dataio/safetensors.h"
#include "model/hf/name_map.h"
#include "parallel/param.h"

namespace hanok {

/// One Hugging Face tensor: a stretch of one of our global tensors.
struct WeightPart {
  int param = 0;  // index into the table
  HfPart part;
  std::vector<int64_t> our_shape;  // of the stretch, in our dims; as many elements as part.shape
  /// The HF tensor as a stretch of ours.
  Tensor as_ours(const Tensor& theirs) const;
  /// And back; a copy where the two lie otherwise in memory.
  Tensor as_theirs(const Tensor& stretch) const;
};
/// All tensors of the model in table order; the same on every rank. errors: kShape if a part does not fit its parameter
std::vector<WeightPart> weight_parts(const ParamTable& params, const ModelConfig& config);

/// A head that shares the embedding may still be stored. (its HF name, the HF name of what it equals); empty names:
/// none.
struct TiedName {
  std::string copy, original;
};
TiedName tied_name(const ParamTable& params, const ModelConfig& config);

/// How the folder keeps its experts (model.experts_on_disk), by the shapes of its tensors.
std::string expert_layout(const ModelConfig& config, const WeightFolder& folder);

/// The ranks over which a weight is cut.
const Comm& cut_group(const ParamSpec& spec, const Groups& groups);
/// A rank's place in the cut of a weight, and in the second one of experts over etp.
struct CutPlace {
  int index = 0, parts = 1;
  int inner = 0, inner_parts = 1;
};
CutPlace cut_place(const ParamSpec& spec, const Groups& groups);

/// Where a stretch meets what one rank holds: rows [in_part, +size) of the stretch are rows [in_local,
/// +size) of the local tensor, both along `dim`, once the local tensor is narrowed to the stretch (local_view).
struct Overlap {
  int dim = 0;
  int64_t in_part = 0, in_local = 0, size = 0;
  // Of experts cut over etp, the same along `inner_dim`; -1: all of it.
  int inner_dim = -1;
  int64_t inner_in_part = 0, inner_in_local = 0, inner_size = 0;
};
/// `only_spoken`: leave out what another rank speaks for, so that all ranks together give every element once.
std::vector<Overlap> overlaps(const ParamSpec& spec, const HfPart& part, const CutPlace& place, bool only_spoken);
Tensor local_view(const Tensor& local, const HfPart& part, const Overlap& overlap);
Tensor part_view(const Tensor& stretch, const Overlap& overlap);

}  // namespace hanok
