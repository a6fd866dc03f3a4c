#pragma once

#include <memory>

#include "configs/schema/config.h"
#include "model/decoder/decoder.h"
#include "model/module.h"

namespace hanok {

/// Qwen3's dense decoder with interleaved M-RoPE.
/// source: HF Qwen3VLTextModel (transformers 5.17)
std::unique_ptr<Decoder> make_dense(const ModelConfig& config, const BuildContext& ctx);

}  // namespace hanok
