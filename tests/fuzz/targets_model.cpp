// config.json of a model folder.
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "configs/schema/check.h"
#include "model/hf/name_map.h"
#include "tests/fuzz/fuzz.h"
#include "trainer/side_files.h"

namespace hanok::fuzz {
namespace {

constexpr size_t kFixedBytes = 64 << 10;  // messages, the reader's buffers
constexpr size_t kPerJsonByte = 32;       // "0," is a JSON value of 16 bytes, three times while its list grows

std::vector<std::string> hf_config_seeds() {
  const std::string text =
      R"("text_config":{"hidden_act":"silu","hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,)"
      R"("num_attention_heads":4,"num_key_value_heads":2,"head_dim":16,"vocab_size":1000,"rms_norm_eps":1e-6,)"
      R"("rope_theta":5000000,"max_position_embeddings":4096,"attention_bias":false,"rope_scaling":)"
      R"({"rope_type":"default","mrope_interleaved":true,"mrope_section":[4,2,2]}})";
  const std::string vision =
      R"("vision_config":{"depth":3,"hidden_size":32,"intermediate_size":64,"num_heads":2,"out_hidden_size":64,)"
      R"("patch_size":16,"temporal_patch_size":2,"spatial_merge_size":2,"num_position_embeddings":64,"in_channels":3,)"
      R"("hidden_act":"gelu_pytorch_tanh","deepstack_visual_indexes":[0,1]})";
  return {
      R"({"model_type":"qwen3_vl","architectures":["Qwen3VLForConditionalGeneration"],"tie_word_embeddings":true,)" +
          text + "," + vision +
          R"(,"image_token_id":900,"video_token_id":901,"vision_start_token_id":902,"vision_end_token_id":903})",
      R"({"model_type":"qwen3_vl",)" + vision + "}"};
}

/// Bound: 32 times the file.
void run_hf_config(const std::string& input, Budget& budget) {
  put_file("config.json", input);
  budget.begin_phase("config.json", kFixedBytes + kPerJsonByte * input.size());
  ModelConfig config;
  read_hf_config(read_json_file(work_folder() + "/config.json"), config);
  check_model(config, ParallelConfig{});
  write_hf_config(config, "float32");
}

void mutate_config(std::string& input, const std::string& other, Random& random) {
  if (random.one_in(8)) return mutate_bytes(input, other, random);
  mutate_json(input, other, random);
}

}  // namespace

const std::vector<Target> kModelTargets = {
    {"hf_config", 8192, hf_config_seeds, mutate_config, run_hf_config},
};

}  // namespace hanok::fuzz
