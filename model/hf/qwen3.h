// The Qwen3 text model as Hugging Face stores it: a family of its own, and the decoder of Qwen3-VL.
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
/// All but rope.
void read_qwen3_text(const ConfigSection& text, DecoderConfig& decoder);
/// All but model_type and rope.
nlohmann::json qwen3_text_json(const ModelConfig& config, const std::string& dtype);

}  // namespace hanok
