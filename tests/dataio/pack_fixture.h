// Small files to pack, and the encoder of the real tokenizer and template.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "dataio/dataset.h"
#include "dataio/loader.h"
#include "dataio/pack.h"
#include "tests/dataio/picture_files.h"
#include "tests/dataio/temp_folder.h"
#include "tests/support/errors.h"

namespace hanok {

inline const std::string kTokenizerFolder = HANOK_SOURCE_DIR "/tests/data/qwen3_vl_tokenizer";

/// Loaded once a program: 150,000 vocabulary entries.
inline SampleEncoder small_encoder() {
  static const SampleEncoder encoder = [] {
    DataConfig data;
    data.chat_template = "qwen3_vl";
    data.min_pixels = 32 * 32;
    data.max_pixels = 128 * 128;
    return sample_encoder(kTokenizerFolder, ModelConfig{}, data);
  }();
  return encoder;
}

class PackFixture : public ::testing::Test {
 protected:
  void write(const std::string& name, const std::string& bytes) {
    const std::string path = folder_ / name;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path, std::ios::binary) << bytes;
  }
  /// A picture with pixels of its own, as PNG, JPEG or WebP by the extension.
  void write_picture(const std::string& name, int width, int height, int seed) {
    pictures::File file;
    std::vector<uint8_t> pixels;
    uint32_t state = 12345u + static_cast<uint32_t>(seed) * 7919u;
    const int channels = name.ends_with(".webp") ? 4 : 3;
    for (int i = 0; i < width * height * channels; ++i) {
      state = state * 1664525u + 1013904223u;
      pixels.push_back(channels == 4 && i % 4 == 3 ? 255 : static_cast<uint8_t>(state >> 24));
    }
    if (name.ends_with(".jpg")) file = pictures::jpeg(width, height, pixels);
    if (name.ends_with(".webp")) file = pictures::webp(width, height, pixels);
    if (name.ends_with(".png")) {
      std::vector<std::string> lines;
      for (int y = 0; y < height; ++y) {
        const auto line = pixels.begin() + static_cast<ptrdiff_t>(y) * width * 3;
        lines.emplace_back(line, line + static_cast<ptrdiff_t>(width) * 3);
      }
      file = pictures::png(width, height, /*color=*/2, /*depth=*/8, lines);
    }
    write(name, std::string(file.begin(), file.end()));
  }
  /// data.csv with `rows` questions about 50 pictures in turn.
  void write_csv(int rows) {
    std::string csv = "id,path,question,a,b,c,d,answer\n";
    for (int i = 0; i < rows; ++i) {
      const std::string name = "img/" + std::to_string(i % 50) + ".png";
      if (i < 50) write_picture(name, 40 + i % 30, 35 + i % 20, i);
      csv += std::to_string(100 + i) + "," + name + ",What is number " + std::to_string(i) + "?,cat,dog,cow,hen," +
             static_cast<char>('a' + i % 4) + "\n";
    }
    write("data.csv", csv);
  }
  PackReport pack(const DatasetConfig& dataset, const std::function<void(const PackProgress&)>& progress = nullptr) {
    return pack_dataset("train", dataset, data_, small_encoder(), progress);
  }
  PackReport pack_csv() { return pack({.path = folder_ / "data.csv"}); }
  static std::string failure_of(const std::function<void()>& body, ErrorKind kind = ErrorKind::kData) {
    return message_of(kind, body);
  }
  static std::string bytes_of(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  static std::string text_of(const Sample& sample) { return small_encoder().tokenizer->decode(sample.tokens); }
  static std::string label_text_of(const Sample& sample) {
    std::string text;
    for (const Span& span : sample.labels) {
      const std::vector<int32_t> ids(sample.tokens.begin() + span.begin, sample.tokens.begin() + span.end);
      text += "[" + small_encoder().tokenizer->decode(ids) + "]";
    }
    return text;
  }
  void SetUp() override { data_.cache = folder_ / "cache"; }

  TempFolder folder_;
  DataConfig data_;
};

}  // namespace hanok
