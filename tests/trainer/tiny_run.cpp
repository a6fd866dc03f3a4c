#include "tests/trainer/tiny_run.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace hanok {
namespace {

constexpr int kFirstSpecial = 256, kVocab = 264;
const char* const kSpecial[] = {"<|endoftext|>",
                                "<|im_start|>",
                                "<|im_end|>",
                                "<|vision_start|>",
                                "<|vision_end|>",
                                "<|vision_pad|>",
                                "<|image_pad|>",
                                "<|video_pad|>"};

std::string utf8(int code) {
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
}

/// One token a byte. source: GPT-2's byte alphabet (printable bytes stand for themselves, others follow from 256 on)
void write_tokenizer(const std::string& folder) {
  std::filesystem::create_directories(folder);
  nlohmann::json vocab, added;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool stands = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    vocab[utf8(stands ? byte : next++)] = byte;
  }
  for (int i = 0; i < 8; ++i)
    added[std::to_string(kFirstSpecial + i)] = {{"content", kSpecial[i]},
                                                {"lstrip", false},
                                                {"rstrip", false},
                                                {"normalized", false},
                                                {"single_word", false},
                                                {"special", true}};
  std::ofstream(folder + "/vocab.json") << vocab;
  std::ofstream(folder + "/merges.txt") << "#version: 0.2\n";
  std::ofstream(folder + "/tokenizer_config.json") << nlohmann::json{
      {"tokenizer_class", "Qwen2Tokenizer"}, {"added_tokens_decoder", added}, {"eos_token", "<|im_end|>"}};
}

/// Rows [begin, end) of the digits that ship with the tests; without their answers where there is nothing to learn.
void write_rows(const std::string& path, int begin, int end, bool with_answers) {
  std::ifstream in(HANOK_SOURCE_DIR "/tests/data/digits/digits.csv");
  std::ofstream out(path);
  std::string line;
  std::getline(in, line);
  const auto cut = [&](const std::string& row) { return with_answers ? row : row.substr(0, row.rfind(',')); };
  out << cut(line) << "\n";
  for (int row = 0; std::getline(in, line) && row < end; ++row)
    if (row >= begin) out << cut(line) << "\n";
}

}  // namespace

TinyRun::TinyRun(const std::string& name) : folder_(testing::TempDir() + "/hanok_" + name) {
  std::filesystem::remove_all(folder_);
  write_tokenizer(folder_ + "/tokenizer");
  write_rows(folder_ + "/train.csv", 0, 48, true);
  write_rows(folder_ + "/heldout.csv", 48, 64, true);
  write_rows(folder_ + "/predict.csv", 58, 64, false);
}

TinyRun::~TinyRun() {
  std::filesystem::remove_all(folder_);
}

RunConfig TinyRun::config() const {
  RunConfig config;
  config.name = "tiny";
  config.out = folder_ + "/run";
  config.seed = 3;
  ModelConfig& model = config.model;
  model.tokenizer = folder_ + "/tokenizer";
  model.tower = {.depth = 1, .hidden = 16, .ffn = 24, .heads = 2, .position_grid = 6};
  model.decoder = {.layers = 2,
                   .hidden = 16,
                   .ffn = 24,
                   .heads = 2,
                   .kv_heads = 2,
                   .head_dim = 12,
                   .vocab = kVocab,
                   .rope_theta = 1e4,
                   .mrope_section = {2, 2, 2},
                   .tied = true};
  model.taps = {0};
  model.init_std = 0.1;
  model.vision_start_token = kFirstSpecial + 3;
  model.vision_end_token = kFirstSpecial + 4;
  model.image_token = kFirstSpecial + 6;
  model.video_token = kFirstSpecial + 7;

  DataConfig& data = config.data;
  data.cache = folder_ + "/packs";
  data.chat_template = "qwen3_vl";
  data.min_pixels = 1024;
  data.max_pixels = 4096;
  data.pack_window = 16;
  for (const char* set : {"train", "heldout", "predict"}) {
    data.sets[set].path = folder_ + "/" + set + ".csv";
    data.sets[set].image_root = HANOK_SOURCE_DIR "/tests/data/digits";
  }
  StageConfig stage;
  stage.mixture = {{"train", 1.0}};
  stage.seq_len = 512;
  stage.rows_per_step = 2;
  stage.optimizer.lr = 3e-3;
  stage.name = "align";
  stage.trainable = {"connector.**"};
  stage.steps = 3;
  config.stages.push_back(stage);
  stage.name = "all";
  stage.trainable = {"**"};
  stage.steps = 5;
  config.stages.push_back(stage);
  config.save.every = 2;
  config.eval.set = "heldout";
  config.log.every = 1000;
  return config;
}

}  // namespace hanok
