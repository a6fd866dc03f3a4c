#include "model/hf/qwen3.h"

#include <algorithm>

namespace hanok {
namespace {

using Json = nlohmann::json;

/// Of the layers with experts. transformers 4 and published folders say num_experts, transformers 5 num_local_experts.
void read_experts(const ConfigSection& text, DecoderConfig& decoder) {
  decoder.type = "qwen3_moe";
  decoder.experts = text.required<int64_t>(text.has("num_local_experts") ? "num_local_experts" : "num_experts");
  decoder.experts_per_token = text.required<int64_t>("num_experts_per_tok");
  decoder.expert_ffn = text.required<int64_t>("moe_intermediate_size");
  decoder.expert_step = text.optional<int64_t>("decoder_sparse_step", 1);
  decoder.dense_layers = text.optional<std::vector<int64_t>>("mlp_only_layers", {});
  decoder.aux_loss = text.optional<double>("router_aux_loss_coef", 0.001);
}

void write_experts(const DecoderConfig& decoder, Json& out) {
  out["num_experts"] = decoder.experts;
  out["num_local_experts"] = decoder.experts;
  out["num_experts_per_tok"] = decoder.experts_per_token;
  out["moe_intermediate_size"] = decoder.expert_ffn;
  out["decoder_sparse_step"] = decoder.expert_step;
  out["mlp_only_layers"] = decoder.dense_layers;
  out["router_aux_loss_coef"] = decoder.aux_loss;
  out["norm_topk_prob"] = decoder.norm_topk;
}

/// A rope that transformers 4 or 5 writes; the older key wins where both stand.
void read_rope(const ConfigSection& top, DecoderConfig& decoder) {
  decoder.rope_theta = top.optional<double>("rope_theta", 10000);
  const char* key = top.has("rope_scaling") ? "rope_scaling" : "rope_parameters";
  if (!top.has(key)) return;
  const ConfigSection rope = top.section(key);
  rope.require<std::string>(rope.has("rope_type") ? "rope_type" : "type", "default");
  decoder.rope_theta = rope.optional<double>("rope_theta", decoder.rope_theta);
}

}  // namespace

std::vector<NameRow> qwen3_text_rows(const std::string& prefix) {
  const std::string layer = prefix + "layers.*.";
  return {
      copy("decoder.embed.weight", prefix + "embed_tokens.weight"),
      copy("decoder.layers.*.attn_norm.weight", layer + "input_layernorm.weight"),
      fuse("decoder.layers.*.attn.qkv.weight",
           {layer + "self_attn.q_proj.weight", layer + "self_attn.k_proj.weight", layer + "self_attn.v_proj.weight"}),
      copy("decoder.layers.*.attn.q_norm.weight", layer + "self_attn.q_norm.weight"),
      copy("decoder.layers.*.attn.k_norm.weight", layer + "self_attn.k_norm.weight"),
      copy("decoder.layers.*.attn.out.weight", layer + "self_attn.o_proj.weight"),
      copy("decoder.layers.*.mlp_norm.weight", layer + "post_attention_layernorm.weight"),
      fuse("decoder.layers.*.mlp.up.weight", {layer + "mlp.gate_proj.weight", layer + "mlp.up_proj.weight"}),
      copy("decoder.layers.*.mlp.down.weight", layer + "mlp.down_proj.weight"),
      copy("decoder.layers.*.moe.router.weight", layer + "mlp.gate.weight"),
      in_layout("fused_out_in", copy("decoder.layers.*.moe.experts.up.weight", layer + "mlp.experts.gate_up_proj")),
      in_layout("fused_out_in", copy("decoder.layers.*.moe.experts.down.weight", layer + "mlp.experts.down_proj")),
      in_layout("fused_in_out",
                transposed("decoder.layers.*.moe.experts.up.weight", layer + "mlp.experts.gate_up_proj")),
      in_layout("fused_in_out",
                transposed("decoder.layers.*.moe.experts.down.weight", layer + "mlp.experts.down_proj")),
      in_layout("separate",
                stack("decoder.layers.*.moe.experts.up.weight",
                      {layer + "mlp.experts.#.gate_proj.weight", layer + "mlp.experts.#.up_proj.weight"})),
      in_layout("separate",
                stack("decoder.layers.*.moe.experts.down.weight", {layer + "mlp.experts.#.down_proj.weight"})),
      copy("decoder.norm.weight", prefix + "norm.weight"),
      copy("decoder.head.weight", "lm_head.weight"),
      tied("decoder.head.weight", "decoder.embed.weight")};
}

void read_qwen3_text(const ConfigSection& text, DecoderConfig& decoder, bool experts) {
  text.require<std::string>("hidden_act", "silu");
  text.require<bool>("attention_bias", false);
  text.require<double>("attention_dropout", 0);
  decoder.type = "qwen3_dense";
  if (experts) read_experts(text, decoder);
  decoder.layers = text.required<int64_t>("num_hidden_layers");
  decoder.hidden = text.required<int64_t>("hidden_size");
  decoder.ffn = text.required<int64_t>("intermediate_size");
  decoder.heads = text.required<int64_t>("num_attention_heads");
  decoder.kv_heads = text.optional<int64_t>("num_key_value_heads", decoder.heads);
  // What transformers takes where the key is absent differs by family.
  const int64_t head_dim = experts ? decoder.hidden / std::max<int64_t>(1, decoder.heads) : 128;
  decoder.head_dim = text.optional<int64_t>("head_dim", head_dim);
  decoder.vocab = text.required<int64_t>("vocab_size");
  decoder.norm_eps = text.optional<double>("rms_norm_eps", 1e-6);
}

Json qwen3_text_json(const ModelConfig& config, const std::string& dtype) {
  const DecoderConfig& decoder = config.decoder;
  Json out = {{"attention_bias", false},
              {"attention_dropout", 0.0},
              {"dtype", dtype},
              {"head_dim", decoder.head_dim},
              {"hidden_act", "silu"},
              {"hidden_size", decoder.hidden},
              {"initializer_range", config.init_std},
              {"intermediate_size", decoder.ffn},
              {"max_position_embeddings", decoder.max_positions},
              {"num_attention_heads", decoder.heads},
              {"num_hidden_layers", decoder.layers},
              {"num_key_value_heads", decoder.kv_heads},
              {"rms_norm_eps", decoder.norm_eps},
              {"rope_theta", decoder.rope_theta},
              {"use_cache", true},
              {"vocab_size", decoder.vocab}};
  if (decoder.is_moe()) write_experts(decoder, out);
  return out;
}

const NameMap& qwen3_names() {
  static const NameMap kNames(qwen3_text_rows("model."), {"**.inv_freq"});
  return kNames;
}

void read_qwen3_config(const Json& hf, ModelConfig& config) {
  const ConfigSection top(hf, "");
  DecoderConfig& decoder = config.decoder;
  const bool experts = config.known_family() == "qwen3_moe";
  read_qwen3_text(top, decoder, experts);
  if (experts) decoder.norm_topk = top.optional<bool>("norm_topk_prob", false);
  read_rope(top, decoder);
  top.require<bool>("use_sliding_window", false);
  decoder.max_positions = top.optional<int64_t>("max_position_embeddings", 32768);
  decoder.tied = top.optional<bool>("tie_word_embeddings", false);
  const int64_t half = decoder.head_dim / 2;
  decoder.mrope_section = {half - 2 * (half / 3), half / 3, half / 3};
  config.init_std = top.optional<double>("initializer_range", 0.02);
  config.tower = {};
  config.tower.type = "none";
  config.taps = {};
}

Json write_qwen3_config(const ModelConfig& config, const std::string& dtype) {
  const bool experts = config.decoder.is_moe();
  Json out = qwen3_text_json(config, dtype);
  out["architectures"] = {experts ? "Qwen3MoeForCausalLM" : "Qwen3ForCausalLM"};
  out["model_type"] = experts ? "qwen3_moe" : "qwen3";
  out["rope_parameters"] = {{"rope_theta", config.decoder.rope_theta}, {"rope_type", "default"}};
  out["tie_word_embeddings"] = config.decoder.tied;
  out["use_sliding_window"] = false;
  return out;
}

}  // namespace hanok
