// The Qwen3-VL families as Hugging Face stores them, dense and with experts.
#pragma once

#include "model/hf/name_map.h"

namespace hanok {

const NameMap& qwen3_vl_names();
void read_qwen3_vl_config(const nlohmann::json& hf, ModelConfig& config);
nlohmann::json write_qwen3_vl_config(const ModelConfig& config, const std::string& dtype);

}  // namespace hanok
