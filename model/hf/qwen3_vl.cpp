#include "model/hf/qwen3_vl.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/hf/qwen3.h"

namespace hanok {
namespace {

using Json = nlohmann::json;

std::vector<int64_t> patch_kernel(const ModelConfig& config) {
  const TowerConfig& tower = config.tower;
  return {tower.hidden, tower.channels, tower.temporal_patch, tower.patch, tower.patch};
}

void read_text(const ConfigSection& text, DecoderConfig& decoder, bool experts) {
  read_qwen3_text(text, decoder, experts);
  decoder.norm_topk = true;
  if (experts) text.require<bool>("norm_topk_prob", true);  // the architecture knows no other
  decoder.max_positions = text.optional<int64_t>("max_position_embeddings", 128000);
  decoder.rope_theta = text.optional<double>("rope_theta", 500000);
  decoder.mrope_section = {24, 20, 20};
  const char* key =
      text.has("rope_scaling") ? "rope_scaling" : "rope_parameters";  // the older key wins where both stand
  if (!text.has(key)) return;
  const ConfigSection rope = text.section(key);
  rope.require<std::string>(rope.has("rope_type") ? "rope_type" : "type", "default");
  rope.require<bool>("mrope_interleaved", true);
  decoder.rope_theta = rope.optional<double>("rope_theta", decoder.rope_theta);
  decoder.mrope_section = rope.optional<std::vector<int64_t>>("mrope_section", decoder.mrope_section);
}

void read_vision(const ConfigSection& vision, ModelConfig& config) {
  vision.require<std::string>("hidden_act", "gelu_pytorch_tanh");
  if (vision.has("rope_parameters")) {
    const ConfigSection rope = vision.section("rope_parameters");
    rope.require<std::string>("rope_type", "axial");
    rope.require<double>("rope_theta", 10000);
  }
  TowerConfig& tower = config.tower;
  tower.type = "qwen3vl_vit";
  tower.depth = vision.required<int64_t>("depth");
  tower.hidden = vision.required<int64_t>("hidden_size");
  tower.ffn = vision.required<int64_t>("intermediate_size");
  tower.heads = vision.required<int64_t>("num_heads");
  tower.channels = vision.optional<int64_t>("in_channels", 3);
  tower.patch = vision.edge("patch_size", 16);
  tower.temporal_patch = vision.edge("temporal_patch_size", 2);
  const auto positions = vision.optional<int64_t>("num_position_embeddings", 2304);
  tower.position_grid = std::llround(std::sqrt(static_cast<double>(positions)));
  HANOK_REQUIRE(
      positions >= 0 && positions < int64_t{1} << 40 && tower.position_grid * tower.position_grid == positions, kConfig)
      << "vision_config.num_position_embeddings: got " << positions << ", expected a square; config.json";
  config.connector.type = "merger_mlp";
  config.connector.merge = vision.optional<int64_t>("spatial_merge_size", 2);
  config.connector.out = vision.required<int64_t>("out_hidden_size");
  HANOK_REQUIRE(config.connector.out == config.decoder.hidden, kConfig)
      << "vision_config.out_hidden_size: got " << config.connector.out
      << ", expected text_config.hidden_size = " << config.decoder.hidden << "; config.json";
  config.taps = vision.required<std::vector<int64_t>>("deepstack_visual_indexes");
  HANOK_REQUIRE(std::adjacent_find(config.taps.begin(), config.taps.end(), std::greater_equal<>()) == config.taps.end(),
                kConfig)
      << "vision_config.deepstack_visual_indexes: got " << config.taps
      << ", expected rising block indices; config.json";
}

std::vector<NameRow> vision_rows() {
  return {
      reshaped("tower.patch_embed.weight", "model.visual.patch_embed.proj.weight", &patch_kernel),
      copy("tower.patch_embed.bias", "model.visual.patch_embed.proj.bias"),
      copy("tower.position.weight", "model.visual.pos_embed.weight"),
      copy("tower.layers.*.attn_norm.weight", "model.visual.blocks.*.norm1.weight"),
      copy("tower.layers.*.attn_norm.bias", "model.visual.blocks.*.norm1.bias"),
      copy("tower.layers.*.attn.qkv.weight", "model.visual.blocks.*.attn.qkv.weight"),
      copy("tower.layers.*.attn.qkv.bias", "model.visual.blocks.*.attn.qkv.bias"),
      copy("tower.layers.*.attn.out.weight", "model.visual.blocks.*.attn.proj.weight"),
      copy("tower.layers.*.attn.out.bias", "model.visual.blocks.*.attn.proj.bias"),
      copy("tower.layers.*.mlp_norm.weight", "model.visual.blocks.*.norm2.weight"),
      copy("tower.layers.*.mlp_norm.bias", "model.visual.blocks.*.norm2.bias"),
      copy("tower.layers.*.mlp.up.weight", "model.visual.blocks.*.mlp.linear_fc1.weight"),
      copy("tower.layers.*.mlp.up.bias", "model.visual.blocks.*.mlp.linear_fc1.bias"),
      copy("tower.layers.*.mlp.down.weight", "model.visual.blocks.*.mlp.linear_fc2.weight"),
      copy("tower.layers.*.mlp.down.bias", "model.visual.blocks.*.mlp.linear_fc2.bias"),
      copy("connector.main.norm.weight", "model.visual.merger.norm.weight"),
      copy("connector.main.norm.bias", "model.visual.merger.norm.bias"),
      copy("connector.main.mlp.up.weight", "model.visual.merger.linear_fc1.weight"),
      copy("connector.main.mlp.up.bias", "model.visual.merger.linear_fc1.bias"),
      copy("connector.main.mlp.down.weight", "model.visual.merger.linear_fc2.weight"),
      copy("connector.main.mlp.down.bias", "model.visual.merger.linear_fc2.bias"),
      copy("connector.taps.*.norm.weight", "model.visual.deepstack_merger_list.*.norm.weight"),
      copy("connector.taps.*.norm.bias", "model.visual.deepstack_merger_list.*.norm.bias"),
      copy("connector.taps.*.mlp.up.weight", "model.visual.deepstack_merger_list.*.linear_fc1.weight"),
      copy("connector.taps.*.mlp.up.bias", "model.visual.deepstack_merger_list.*.linear_fc1.bias"),
      copy("connector.taps.*.mlp.down.weight", "model.visual.deepstack_merger_list.*.linear_fc2.weight"),
      copy("connector.taps.*.mlp.down.bias", "model.visual.deepstack_merger_list.*.linear_fc2.bias"),
  };
}

}  // namespace

const NameMap& qwen3_vl_names() {
  static const NameMap kNames(
      [] {
        std::vector<NameRow> rows = qwen3_text_rows("model.language_model.");
        const std::vector<NameRow> vision = vision_rows();
        rows.insert(rows.end(), vision.begin(), vision.end());
        return rows;
      }(),
      {"**.inv_freq"});
  return kNames;
}

void read_qwen3_vl_config(const Json& hf, ModelConfig& config) {
  const ConfigSection top(hf, "");
  const ConfigSection text = top.section("text_config");
  read_text(text, config.decoder, config.known_family() == "qwen3_vl_moe");
  read_vision(top.section("vision_config"), config);
  // The top level decides: the default inside text_config is that of another class.
  config.decoder.tied = top.optional<bool>("tie_word_embeddings", text.optional<bool>("tie_word_embeddings", false));
  config.init_std = text.optional<double>("initializer_range", 0.02);
  config.image_token = top.optional<int64_t>("image_token_id", 151655);
  config.video_token = top.optional<int64_t>("video_token_id", 151656);
  config.vision_start_token = top.optional<int64_t>("vision_start_token_id", 151652);
  config.vision_end_token = top.optional<int64_t>("vision_end_token_id", 151653);
}

Json write_qwen3_vl_config(const ModelConfig& config, const std::string& dtype) {
  const DecoderConfig& decoder = config.decoder;
  const TowerConfig& tower = config.tower;
  const Json rope_scaling = {
      {"mrope_interleaved", true}, {"mrope_section", decoder.mrope_section}, {"rope_type", "default"}};
  Json rope_parameters = rope_scaling;
  rope_parameters["rope_theta"] = decoder.rope_theta;
  Json text = qwen3_text_json(config, dtype);
  const std::string type = decoder.is_moe() ? "qwen3_vl_moe" : "qwen3_vl";
  text["model_type"] = type + "_text";
  text["rope_parameters"] = rope_parameters;
  text["rope_scaling"] = rope_scaling;  // with rope_theta: for transformers 4
  const Json vision = {{"deepstack_visual_indexes", config.taps},
                       {"depth", tower.depth},
                       {"dtype", dtype},
                       {"hidden_act", "gelu_pytorch_tanh"},
                       {"hidden_size", tower.hidden},
                       {"in_channels", tower.channels},
                       {"initializer_range", config.init_std},
                       {"intermediate_size", tower.ffn},
                       {"model_type", type + "_vision"},
                       {"num_heads", tower.heads},
                       {"num_position_embeddings", tower.position_grid * tower.position_grid},
                       {"out_hidden_size", decoder.hidden},
                       {"patch_size", tower.patch},
                       {"spatial_merge_size", config.connector.merge},
                       {"temporal_patch_size", tower.temporal_patch}};
  return {
      {"architectures", {decoder.is_moe() ? "Qwen3VLMoeForConditionalGeneration" : "Qwen3VLForConditionalGeneration"}},
      {"dtype", dtype},
      {"image_token_id", config.image_token},
      {"model_type", type},
      {"text_config", text},
      {"tie_word_embeddings", decoder.tied},
      {"video_token_id", config.video_token},
      {"vision_config", vision},
      {"vision_end_token_id", config.vision_end_token},
      {"vision_start_token_id", config.vision_start_token}};
}

}  // namespace hanok
