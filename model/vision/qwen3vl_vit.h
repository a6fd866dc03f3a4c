#pragma once

#include <memory>

#include "configs/schema/config.h"
#include "model/module.h"
#include "model/vision/tower.h"

namespace hanok {

/// Qwen3-VL's vision transformer: patch embedding with resampled learned positions, 2D rotary embedding, attention
/// inside one temporal frame, LayerNorm, tanh-GELU. Tokens stand in merge order: the patches of one merged token are
/// neighbours. source: HF Qwen3VLVisionModel (transformers 5.17)
std::unique_ptr<Tower> make_qwen3vl_vit(const ModelConfig& config, const BuildContext& ctx);

}  // namespace hanok
