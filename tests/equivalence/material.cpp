#include "tests/equivalence/material.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "dataio/file_io.h"
#include "dataio/import/record.h"

namespace hanok {
namespace {

constexpr int32_t kImage = 256, kVisionStart = 257, kVisionEnd = 258, kEndOfTurn = 259, kVideo = 260, kVocab = 263;
constexpr int64_t kPatch = 8, kMerge = 2;

void append_text(Sample& sample, const std::string& text) {
  for (const char c : text) sample.tokens.push_back(static_cast<unsigned char>(c));
}

void append_answer(Sample& sample, const std::string& text) {
  const auto begin = static_cast<int64_t>(sample.tokens.size());
  append_text(sample, text);
  sample.tokens.push_back(kEndOfTurn);
  sample.labels.push_back({begin, static_cast<int64_t>(sample.tokens.size())});
}

Sample digit_sample(const Record& record, const std::string& folder, int number) {
  Sample sample;
  sample.id = record.id;
  VisionItem item;
  item.h = 4 + 2 * (number % 2);  // two shapes of pictures
  item.w = 4;
  for (const ContentPart& part : record.messages.front().content) {
    if (part.kind != ContentPart::Kind::kImage) continue;
    const std::string bytes = read_file(folder + "/" + part.text);
    item.frames.emplace_back(bytes.begin(), bytes.end());
  }
  sample.tokens.push_back(kVisionStart);
  item.token_begins = {1};
  sample.tokens.insert(sample.tokens.end(), item.h * item.w / (kMerge * kMerge), kImage);
  sample.tokens.push_back(kVisionEnd);
  sample.vision.push_back(std::move(item));
  append_text(sample, record.question.substr(0, 40));
  for (size_t c = 0; c < record.choices.size(); ++c) append_text(sample, " " + record.choices[c].substr(0, 4));
  append_answer(sample, std::string(1, static_cast<char>('a' + record.answer)));
  return sample;
}

struct Problem {
  std::string question, answer;
};

std::vector<Problem> problems(size_t count) {
  std::vector<Problem> out;
  std::ifstream file(HANOK_SOURCE_DIR "/tests/data/gsm8k/train.jsonl");
  for (std::string line; out.size() < count && std::getline(file, line);) {
    const auto json = nlohmann::json::parse(line);
    out.push_back({json["question"].get<std::string>().substr(0, 60), json["answer"].get<std::string>().substr(0, 90)});
  }
  return out;
}

}  // namespace

ModelConfig small_model(bool tied) {
  ModelConfig config;
  config.tower = {.depth = 2, .hidden = 32, .ffn = 48, .heads = 4, .patch = kPatch, .position_grid = 6};
  config.connector = {.merge = kMerge};
  config.decoder = {.layers = 3,
                    .hidden = 32,
                    .ffn = 48,
                    .heads = 4,
                    .kv_heads = 2,
                    .head_dim = 12,
                    .vocab = kVocab,
                    .rope_theta = 1e4,
                    .mrope_section = {2, 2, 2},
                    .tied = tied};
  config.taps = {0};
  config.init_std = 0.1;
  config.image_token = kImage;
  config.video_token = kVideo;
  config.vision_start_token = kVisionStart;
  config.vision_end_token = kVisionEnd;
  return config;
}

ModelConfig small_moe_model(bool tied) {
  ModelConfig config = small_model(tied);
  DecoderConfig& decoder = config.decoder;
  decoder.type = "qwen3_moe";
  decoder.experts = 8;
  decoder.experts_per_token = 2;
  decoder.expert_ffn = 20;
  decoder.dense_layers = {1};
  decoder.aux_loss = 0.05;  // large enough to be missed
  return config;
}

std::vector<Sample> real_samples() {
  std::vector<Sample> samples;
  const std::string folder = HANOK_SOURCE_DIR "/tests/data/digits";
  DatasetConfig dataset;
  dataset.path = folder + "/digits.csv";
  const auto records = open_records("digits", dataset);
  int number = 0;
  for (Record record; records->next(record); record = {}) samples.push_back(digit_sample(record, folder, number++));
  const std::vector<Problem> texts = problems(48);
  for (size_t i = 0; i < 32; ++i) {
    Sample sample;
    sample.id = concat("text", i);
    append_text(sample, texts[i].question);
    append_answer(sample, texts[i].answer);
    samples.push_back(std::move(sample));
  }
  for (size_t i = 32; i < 48; i += 2) {
    Sample sample;
    sample.id = concat("turns", i);
    append_text(sample, texts[i].question.substr(0, 30));
    append_answer(sample, texts[i].answer.substr(0, 20));
    append_text(sample, texts[i + 1].question.substr(0, 30));
    append_answer(sample, texts[i + 1].answer);
    samples.push_back(std::move(sample));
  }
  return samples;
}

BatchSpec small_batches(int64_t pad_multiple) {
  BatchSpec spec;
  spec.seq_len = 240;
  spec.pad_multiple = pad_multiple;
  spec.vision.patch = kPatch;
  spec.vision.merge = kMerge;
  return spec;
}

std::vector<Batch> batches_of(const std::vector<Sample>& samples,
                              const std::vector<Row>& rows,
                              int64_t rows_per_micro_batch,
                              const BatchSpec& spec) {
  std::vector<Batch> batches;
  const auto num_rows = static_cast<int64_t>(rows.size());
  for (int64_t begin = 0; begin < num_rows; begin += rows_per_micro_batch) {
    std::vector<Sample> members;
    std::vector<SampleRef> refs;
    for (int64_t r = begin; r < std::min(begin + rows_per_micro_batch, num_rows); ++r) {
      for (const SampleRef& ref : rows[r]) {
        members.push_back(samples[ref.index]);
        refs.push_back(ref);
      }
    }
    Batch batch = make_batch(members, refs, spec);
    // As the loader does it: which packed row a sample belongs to.
    size_t next = 0;
    for (int64_t r = begin; r < std::min(begin + rows_per_micro_batch, num_rows); ++r)
      for (size_t i = 0; i < rows[r].size(); ++i) batch.samples[next++].row = static_cast<int>(r - begin);
    batches.push_back(std::move(batch));
  }
  return batches;
}

std::vector<Row> rows_of_slice(const std::vector<Row>& rows, int index, int count) {
  const auto n = static_cast<int64_t>(rows.size());
  return {rows.begin() + index * n / count, rows.begin() + (index + 1) * n / count};
}

}  // namespace hanok
