// Driven by tests/oracle/dataset.py and pack_test: reads one JSON job a line and answers each with JSON lines.
#include <chrono>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "dataio/dataset.h"
#include "dataio/loader.h"
#include "dataio/pack.h"

using namespace hanok;
using nlohmann::json;

namespace {

struct ReadKeys {
  const json& job;
  template <class T, class... Rest>
  void operator()(const char* key, T& value, Rest&&...) const {
    if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) value = job.value(key, value);
  }
};

DatasetConfig dataset_of(const json& job) {
  DatasetConfig dataset;
  DatasetConfig::fields(dataset, ReadKeys{job});
  return dataset;
}

DataConfig data_of(const json& job) {
  DataConfig data;
  DataConfig::fields(data, ReadKeys{job});
  data.chat_template = job.value("chat_template", "qwen3_vl");
  return data;
}

SampleEncoder encoder_of(const json& job) {
  return sample_encoder(job["folder"], ModelConfig{}, data_of(job));
}

void run_pack(const json& job) {
  const SampleEncoder encoder = encoder_of(job);
  const PackReport report = pack_dataset(job.value("name", "set"), dataset_of(job), data_of(job), encoder, nullptr);
  std::cout << json{{"file", report.file},
                    {"was_cached", report.was_cached},
                    {"records", report.num_records},
                    {"samples", report.num_samples},
                    {"images", report.num_images},
                    {"tokens", report.num_tokens},
                    {"bad", report.bad.by_reason},
                    {"bad_list", report.bad_list},
                    {"seconds", report.seconds}}
            << std::endl;
}

json spans_json(const std::vector<Span>& spans) {
  json list = json::array();
  for (const Span& span : spans) list.push_back({span.begin, span.end});
  return list;
}

/// Every sample as its own micro-batch; pixels go to a file as raw f32.
void run_read(const json& job) {
  const Dataset dataset(job["file"]);
  const BatchSpec spec{.vision = encoder_of(job).vision};
  std::ofstream pixels(job["pixels"].get<std::string>(), std::ios::binary);
  for (int64_t i = 0; i < dataset.size(); ++i) {
    const Sample sample = dataset.read(i);
    const Batch batch = make_batch({sample}, {{0, i}}, spec);
    json items = json::array();
    for (const VisionItem& item : sample.vision) items.push_back({item.is_video, item.t, item.h, item.w});
    const auto* position = batch.position_3T.const_data_ptr<int64_t>();
    std::cout << json{{"id", sample.id},
                      {"tokens", sample.tokens},
                      {"labels", spans_json(sample.labels)},
                      {"items", items},
                      {"rows", batch.pixels_PC.size(0)},
                      {"columns", batch.pixels_PC.size(1)},
                      {"positions", std::vector<int64_t>(position, position + batch.position_3T.numel())}}
              << std::endl;
    pixels.write(static_cast<const char*>(batch.pixels_PC.data_ptr()),
                 static_cast<std::streamsize>(batch.pixels_PC.nbytes()));
  }
}

/// One pass of training reads over a packed file.
void run_speed(const json& job) {
  const auto dataset = std::make_shared<const Dataset>(job["file"].get<std::string>());
  const BatchSpec spec{.seq_len = 2048, .vision = encoder_of(job).vision};
  std::vector<std::vector<Row>> batches;
  for (Row& row : evaluation_rows(*dataset, 0, spec.seq_len)) batches.push_back({std::move(row)});
  const auto begin = std::chrono::steady_clock::now();
  RowReader reader({dataset}, std::move(batches), {.batch = spec, .reader_threads = job["threads"]}, nullptr);
  int64_t num_images = 0;
  while (const std::optional<Batch> batch = reader.next()) num_images += batch->grid_I3.size(0);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::cout << json{{"images", num_images}, {"seconds", seconds}} << std::endl;
}

void run(const json& job) {
  const std::string what = job["do"];
  if (what == "pack") run_pack(job);
  if (what == "read") run_read(job);
  if (what == "speed") run_speed(job);
  if (what == "template") std::cout << json(jinja_of(job["name"].get<std::string>())) << std::endl;
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    try {
      run(json::parse(line));
    } catch (const Error& error) {
      std::cout << json{{"error", error.what()}} << std::endl;
    }
    std::cout << "done" << std::endl;
  }
  return 0;
}
