#pragma once

#include <memory>

#include "configs/schema/config.h"
#include "model/decoder/decoder.h"
#include "model/module.h"

namespace hanok {

/// Qwen3's decoder with interleaved M-RoPE: dense, or with experts in the layers that the config says (qwen3_moe).
/// source: HF Qwen3VLTextModel, Qwen3VLMoeTextModel (transformers 5.17)
std::unique_ptr<Decoder> make_dense(const ModelConfig& config, const BuildContext& ctx);

}  // namespace hanok
