// The Qwen3 text model as Hugging Face stores it, dense or with experts: families of their own, and the decoder of
// Qwen3-VL.
#pragma once

#include "model/hf/config_section.h"
#include "model/hf/name_map.h"

namespace hanok {

const NameMap& qwen3_names();
void read_qwen3_config(const nlohmann::json& hf, ModelConfig& config);
/// Rotary positions with three equal axes, as text has them, are plain ones: mrope_section needs no place in it.
nlohmann::json write_qwen3_config(const ModelConfig& config, const std::string& dtype);

/// Rows of the decoder where its tensors begin with `prefix`; the head is at the top.
std::vector<NameRow> qwen3_text_rows(const std::string& prefix);
/// All but rope, and but norm_topk_prob where there are `experts`.
void read_qwen3_text(const ConfigSection& text, DecoderConfig& decoder, bool experts);
/// All but model_type and rope.
nlohmann::json qwen3_text_json(const ModelConfig& config, const std::string& dtype);

}  // namespace hanok
