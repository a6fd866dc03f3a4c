#pragma once

#include <memory>

#include "configs/schema/config.h"
#include "model/connector/connector.h"
#include "model/module.h"

namespace hanok {

/// merge x merge neighbouring patches -> one token, by LayerNorm and a two-layer perceptron with exact GELU: one for
/// the features (normalised before merging) and one per tap (normalised after). source: HF Qwen3VLVisionPatchMerger
/// (transformers 5.17)
std::unique_ptr<Connector> make_merger_mlp(const ModelConfig& config, const BuildContext& ctx);

}  // namespace hanok
