#include "model/hf/name_map.h"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "configs/schema/read.h"
#include "model/vlm.h"
#include "tests/model/tiny.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

std::vector<ParamSpec> specs_of(const ModelConfig& config) {
  const Vlm model(config, make_single_groups(), at::kFloat, at::kMeta);
  std::vector<ParamSpec> specs;
  for (const Param& param : model.params()) specs.push_back(param.spec);
  return specs;
}

std::set<std::string> hf_names(const std::vector<ParamSpec>& specs, const ModelConfig& config) {
  std::set<std::string> names;
  for (const ParamSpec& spec : specs)
    for (const HfPart& part : name_map_of("qwen3_vl").parts(spec, config)) names.insert(part.name);
  return names;
}

TEST(NameMap, PartsTileEveryParameterAndNoHfTensorIsUsedTwice) {
  for (const bool tied : {true, false}) {
    ModelConfig config = tiny_config();
    config.decoder.tied = tied;
    std::map<std::string, int> used;
    for (const ParamSpec& spec : specs_of(config)) {
      int64_t next = 0, elements = 0, total = 1;
      for (const int64_t size : spec.shape) total *= size;
      for (const HfPart& part : name_map_of("qwen3_vl").parts(spec, config)) {
        EXPECT_EQ(part.begin, next) << spec.name;
        next += part.size;
        int64_t count = 1;
        for (const int64_t size : part.shape) count *= size;
        elements += count;
        EXPECT_EQ(++used[part.name], 1) << part.name;
      }
      EXPECT_EQ(next, spec.shape[0]) << spec.name;
      EXPECT_EQ(elements, total) << spec.name;
    }
    EXPECT_EQ(used.count("lm_head.weight"), tied ? 0u : 1u);
  }
}

TEST(NameMap, CutsFusedWeightsAtTheirSegments) {
  const ModelConfig config = tiny_config();
  for (const ParamSpec& spec : specs_of(config)) {
    if (spec.name != "decoder.layers.1.attn.qkv.weight") continue;
    const auto parts = name_map_of("qwen3_vl").parts(spec, config);
    ASSERT_EQ(parts.size(), 3u);
    EXPECT_EQ(parts[0].name, "model.language_model.layers.1.self_attn.q_proj.weight");
    EXPECT_EQ(parts[2].name, "model.language_model.layers.1.self_attn.v_proj.weight");
    EXPECT_EQ(parts[1].begin, 48);
    EXPECT_EQ(parts[1].shape, (std::vector<int64_t>{24, 24}));
    return;
  }
  FAIL();
}

TEST(NameMap, SplitsStackedExpertsOneByOne) {
  const NameMap map({stack("moe.*.up", {"theirs.*.experts.#.up_proj.weight"})}, {});
  const auto parts = map.parts({.name = "moe.4.up", .shape = {3, 5, 2}}, tiny_config());
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_EQ(parts[2].name, "theirs.4.experts.2.up_proj.weight");
  EXPECT_EQ(parts[2].begin, 2);
  EXPECT_EQ(parts[2].shape, (std::vector<int64_t>{5, 2}));
}

TEST(NameMap, ListsMissingAndUnexpectedNames) {
  const ModelConfig config = tiny_config();
  const auto specs = specs_of(config);
  const NameMap& map = name_map_of("qwen3_vl");
  std::set<std::string> names = hf_names(specs, config);
  map.check_complete(specs, config, names);
  names.insert("lm_head.weight");  // stored although tied
  names.insert("model.visual.rotary_pos_emb.inv_freq");
  map.check_complete(specs, config, names);
  names.erase("model.language_model.norm.weight");
  names.insert("model.language_model.layers.9.mlp.up_proj.weight");
  const std::string text = message_of(ErrorKind::kCheckpoint, [&] { map.check_complete(specs, config, names); });
  EXPECT_NE(text.find("and with 1 (model.language_model.layers.9.mlp.up_proj.weight)"), std::string::npos) << text;
  EXPECT_NE(text.find("without 1 (model.language_model.norm.weight)"), std::string::npos) << text;
  const std::string many = message_of(ErrorKind::kCheckpoint, [&] { map.check_complete(specs, config, {}); });
  EXPECT_NE(many.find(", ...)"), std::string::npos) << many;
  message_of(ErrorKind::kCheckpoint,
             [&] { map.parts({.name = "decoder.layers.x.attn.out.weight", .shape = {1}}, config); });
}

bool same_numbers(const ModelConfig& a, const ModelConfig& b) {
  RunConfig first, second;
  first.model = a;
  second.model = b;
  return differences(first, second, {}).empty();
}

TEST(HfConfig, WritesWhatItReads) {
  ModelConfig config = tiny_config();
  config.connector.out = config.decoder.hidden;
  ModelConfig read;
  read_hf_config(write_hf_config(config, "bfloat16"), read);
  config.family = config.known_family();
  EXPECT_TRUE(same_numbers(config, read));
  config = read_model_config(HANOK_SOURCE_DIR "/configs/model/qwen3vl_8b.yaml");
  config.connector.out = config.decoder.hidden;
  ModelConfig released;
  read_hf_config(write_hf_config(config, "bfloat16"), released);
  EXPECT_TRUE(same_numbers(config, released));
}

TEST(HfConfig, ReadsTheDialectOfThePublishedCheckpoints) {
  const ModelConfig config = tiny_config();
  nlohmann::json hf = write_hf_config(config, "bfloat16");
  nlohmann::json& text = hf["text_config"];
  text.erase("rope_parameters");
  text["rope_theta"] = 123.0;
  text["tie_word_embeddings"] = false;  // the top level decides
  hf.erase("dtype");
  hf["torch_dtype"] = "bfloat16";
  hf["vision_config"]["patch_size"] = {4, 4};
  ModelConfig read;
  read_hf_config(hf, read);
  EXPECT_EQ(read.decoder.rope_theta, 123.0);
  EXPECT_EQ(read.decoder.mrope_section, config.decoder.mrope_section);
  EXPECT_TRUE(read.decoder.tied);
  EXPECT_EQ(read.tower.patch, 4);
  text.erase("rope_scaling");
  text["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 77.0}, {"mrope_section", {4, 1, 1}}};
  read_hf_config(hf, read);
  EXPECT_EQ(read.decoder.rope_theta, 77.0);
  EXPECT_EQ(read.decoder.mrope_section, (std::vector<int64_t>{4, 1, 1}));
}

TEST(HfConfig, AModelWithoutATowerIsTheTextFamily) {
  ModelConfig config = tiny_config();
  config.tower = {.type = "none"};
  config.taps = {};
  const nlohmann::json hf = write_hf_config(config, "float32");
  EXPECT_EQ(hf["model_type"], "qwen3");
  ModelConfig read;
  read_hf_config(hf, read);
  EXPECT_EQ(read.known_family(), "qwen3");
  EXPECT_EQ(read.tower.type, "none");
  EXPECT_EQ(read.decoder.hidden, config.decoder.hidden);
  EXPECT_EQ(read.decoder.rope_theta, config.decoder.rope_theta);
  EXPECT_EQ(read.decoder.tied, config.decoder.tied);
  int64_t sections = 0;
  for (const int64_t size : read.decoder.mrope_section) sections += size;
  EXPECT_EQ(2 * sections, config.decoder.head_dim);
  std::set<std::string> names;
  for (const ParamSpec& spec : specs_of(config))
    for (const HfPart& part : name_map_of(config.known_family()).parts(spec, config)) names.insert(part.name);
  EXPECT_TRUE(names.contains("model.layers.1.self_attn.q_proj.weight"));
  EXPECT_TRUE(names.contains("model.embed_tokens.weight"));
  nlohmann::json sliding = hf;
  sliding["use_sliding_window"] = true;
  EXPECT_EQ(
      message_of(ErrorKind::kConfig, [&] { read_hf_config(sliding, read); }).rfind("use_sliding_window: got true", 0),
      0u)
      << "got 1 is written for true";
}

// As Qwen3Config and Qwen3MoeConfig of transformers do where the key is absent.
TEST(HfConfig, TheWidthOfHeadsHasADefaultByFamily) {
  ModelConfig config = tiny_config();
  config.tower = {.type = "none"};
  config.taps = {};
  for (const bool experts : {false, true}) {
    if (experts) {
      config.decoder.type = "qwen3_moe";
      config.decoder.experts = 4;
      config.decoder.experts_per_token = 2;
      config.decoder.expert_ffn = 8;
    }
    nlohmann::json hf = write_hf_config(config, "float32");
    hf.erase("head_dim");
    ModelConfig read;
    read_hf_config(hf, read);
    EXPECT_EQ(read.decoder.head_dim, experts ? config.decoder.hidden / config.decoder.heads : 128);
  }
}

TEST(HfConfig, NamesTheKeyThatDoesNotFit) {
  const nlohmann::json good = write_hf_config(tiny_config(), "float32");
  const auto message = [&](const std::string& pointer, const nlohmann::json& value) {
    nlohmann::json hf = good;
    hf[nlohmann::json::json_pointer(pointer)] = value;
    return message_of(ErrorKind::kConfig, [&] {
      ModelConfig read;
      read_hf_config(hf, read);
    });
  };
  EXPECT_EQ(message("/model_type", "llama")
                .rfind("model_type: got llama, expected one of [qwen3_vl, qwen3, qwen3_vl_moe, qwen3_moe]", 0),
            0u);
  EXPECT_EQ(message("/text_config/hidden_act", "gelu").rfind("text_config.hidden_act: got gelu, expected silu", 0), 0u);
  EXPECT_EQ(message("/text_config/hidden_size", nullptr).rfind("text_config.hidden_size: got nothing", 0), 0u);
  EXPECT_EQ(message("/text_config/hidden_size", "wide").rfind("text_config.hidden_size: got \"wide\"", 0), 0u);
  EXPECT_EQ(
      message("/text_config/rope_scaling/rope_type", "yarn").rfind("text_config.rope_scaling.rope_type: got yarn", 0),
      0u);
  EXPECT_EQ(
      message("/vision_config/num_position_embeddings", 35).rfind("vision_config.num_position_embeddings: got 35", 0),
      0u);
  EXPECT_EQ(message("/vision_config/out_hidden_size", 25).rfind("vision_config.out_hidden_size: got 25", 0), 0u);
  EXPECT_EQ(message("/vision_config", 3).rfind("vision_config: got no object", 0), 0u);
  EXPECT_EQ(
      message("/vision_config/deepstack_visual_indexes", {1, 0}).rfind("vision_config.deepstack_visual_indexes", 0),
      0u);
}

}  // namespace
}  // namespace hanok
