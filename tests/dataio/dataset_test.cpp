#include "dataio/dataset.h"

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <random>
#include <set>
#include <thread>

#include "base/error.h"
#include "dataio/pack/columns.h"
#include "tests/dataio/temp_folder.h"

namespace hanok {
namespace {

Sample sample_of(int seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  Sample sample{.id = "id-" + std::to_string(seed)};
  const int size = 5 + static_cast<int>(random() % 50);
  for (int t = 0; t < size; ++t) sample.tokens.push_back(static_cast<int32_t>(random() % 150000));
  sample.labels = {{1, 3}, {size - 2, size}};
  for (int i = 0, num = static_cast<int>(random() % 3); i < num; ++i) {
    VisionItem item{.is_video = i == 1, .t = i + 1, .h = 2, .w = 4, .frames_are_raw = seed % 2 == 0};
    for (int64_t t = 0; t < item.t; ++t) item.token_begins.push_back(t);
    for (int f = 0; f < 2 * i + 1; ++f) {
      auto& frame = item.frames.emplace_back(random() % 400);
      for (auto& byte : frame) byte = static_cast<uint8_t>(random());
    }
    sample.vision.push_back(std::move(item));
  }
  if (seed % 3 == 0) {
    sample.num_choices = 2;
    sample.answer = 1;
    sample.question = "which? \xec\x82\xac";
    sample.choices = {"one", "two \"quoted\""};
  }
  return sample;
}

void expect_equal(const Sample& a, const Sample& b) {
  EXPECT_EQ(a.id, b.id);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.labels, b.labels);
  EXPECT_EQ(a.num_choices, b.num_choices);
  EXPECT_EQ(a.answer, b.answer);
  EXPECT_EQ(a.question, b.question);
  EXPECT_EQ(a.choices, b.choices);
  ASSERT_EQ(a.vision.size(), b.vision.size());
  for (size_t i = 0; i < a.vision.size(); ++i) {
    EXPECT_EQ(a.vision[i].is_video, b.vision[i].is_video);
    EXPECT_EQ(a.vision[i].t, b.vision[i].t);
    EXPECT_EQ(a.vision[i].token_begins, b.vision[i].token_begins);
    EXPECT_EQ(a.vision[i].frames, b.vision[i].frames);
    EXPECT_EQ(a.vision[i].frames_are_raw, b.vision[i].frames_are_raw);
  }
}

class DatasetFile : public ::testing::Test {
 protected:
  static constexpr int kSize = 60;
  void write(int64_t version = format::kVersion) {
    write_with([&](H5File& file, const std::string& hash) {
      file.set_attribute("version", version);
      file.set_attribute("index_xxh3", hash);
    });
  }
  /// Two blocks, as a pack merges them. `describe` adds what a test may want to spoil.
  void write_with(const std::function<void(H5File&, const std::string& hash)>& describe) {
    PackColumns blocks[2];
    for (int i = 0; i < kSize; ++i) blocks[i >= 25].append(sample_of(i), i + 2);
    H5File file = H5File::create(path_);
    create_tables(file, rows_of(blocks[0]) + rows_of(blocks[1]));
    TableRows before{};
    IndexHash hash;
    for (PackColumns& block : blocks) {
      const TableRows rows = rows_of(block);
      shift(block, before);
      write_tables(file, block, before);
      hash.add(block);
      before = before + rows;
    }
    file.set_attribute("schema", format::kSchema);
    file.set_attribute("image_token", 151655);
    file.set_attribute("video_token", 151656);
    file.set_attribute("prompt", "");
    describe(file, hash.text());
    file.close();
  }
  std::string failure_of(const std::function<void()>& function, ErrorKind kind = ErrorKind::kData) {
    try {
      function();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      return error.what();
    }
    return "";
  }
  TempFolder folder_;
  std::string path_ = folder_ / "data.h5";
};

TEST_F(DatasetFile, GivesBackWhatWasPacked) {
  write();
  const Dataset dataset(path_);
  ASSERT_EQ(dataset.size(), kSize);
  const H5File file = H5File::open(path_);
  EXPECT_EQ(dataset.content_key(), file.text_attribute("index_xxh3"));
  EXPECT_EQ(dataset.image_token(), 151655);
  EXPECT_EQ(dataset.provenance("prompt"), "");
  for (int i = kSize - 1; i >= 0; --i) {
    expect_equal(dataset.read(i), sample_of(i));
    EXPECT_EQ(dataset.id(i), sample_of(i).id);
    EXPECT_EQ(dataset.num_tokens(i), static_cast<int64_t>(sample_of(i).tokens.size()));
    EXPECT_EQ(dataset.num_label_tokens(i), 4);
  }
}

TEST_F(DatasetFile, IsReadFromManyThreads) {
  write();
  const Dataset dataset(path_);
  std::atomic<int> num_equal = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = t; i < kSize; i += 2) num_equal += dataset.read(i).tokens == sample_of(i).tokens;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_equal, 2 * kSize - 2);
}

TEST_F(DatasetFile, RefusesOtherVersionsAndOtherFiles) {
  write(format::kVersion + 1);
  const std::string message = failure_of([&] { Dataset dataset(path_); });
  EXPECT_NE(message.find("got schema version 2, expected 1"), std::string::npos) << message;
  EXPECT_NE(message.find("use the program that wrote it"), std::string::npos) << message;
  { H5File::create(path_).close(); }
  EXPECT_NE(failure_of([&] { Dataset dataset(path_); }).find("an HDF5 file of another kind"), std::string::npos);
  std::ofstream(path_) << "text";
  EXPECT_NE(failure_of([&] { Dataset dataset(path_); }).find(path_), std::string::npos);
  EXPECT_NE(failure_of([&] { Dataset dataset(folder_ / "none.h5"); }, ErrorKind::kIo).find("none.h5"),
            std::string::npos);
}

TEST_F(DatasetFile, NoticesEveryDamagedByteOfItsTables) {
  write();
  std::string bytes;
  {
    std::ifstream stream(path_, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(stream), {});
  }
  // The first bytes of each table, found by their content: index tables and sample tables.
  std::vector<size_t> places;
  const Sample first = sample_of(0);
  const auto find = [&](const void* data, size_t size) {
    const size_t at = bytes.find(std::string(static_cast<const char*>(data), size));
    ASSERT_NE(at, std::string::npos);
    for (size_t i = 0; i < size; ++i) places.push_back(at + i);
  };
  find(first.tokens.data(), first.tokens.size() * 4);
  find(first.id.data(), first.id.size());
  find("two \\\"quoted", 12);
  PackColumns columns;
  for (int i = 0; i < 25; ++i) columns.append(sample_of(i), i + 2);
  find(columns.sample_ends.data(), 80);
  find(columns.sample_facts.data(), 24);
  find(columns.sample_records.data(), 24);
  find(columns.sample_xxh3.data(), 24);
  find(columns.frame_ends.data(), 24);
  find(columns.frame_bytes.data(), 64);
  find(columns.labels.data(), 16);
  int num_noticed = 0;
  for (const size_t place : places) {
    std::string damaged = bytes;
    damaged[place] = static_cast<char>(damaged[place] ^ 0x10);
    std::ofstream(path_, std::ios::binary) << damaged;
    const std::string message = failure_of([&] {
      const Dataset dataset(path_);
      for (int64_t i = 0; i < dataset.size(); ++i) dataset.read(i);
    });
    EXPECT_NE(message.find("checksum"), std::string::npos) << "byte " << place << ": " << message;
    num_noticed += !message.empty();
  }
  EXPECT_EQ(num_noticed, static_cast<int>(places.size()));
}

/// HDF5 believes what a file says of its attributes: sizes, counts and the layout of numbers.
TEST_F(DatasetFile, SurvivesEveryDamagedByteAroundItsAttributes) {
  write();
  std::string bytes;
  {
    std::ifstream stream(path_, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(stream), {});
  }
  constexpr size_t kAround = 96;
  std::set<size_t> places;
  for (const char* name : {"schema", "version", "image_token", "video_token", "prompt", "index_xxh3"}) {
    const size_t at = bytes.find(name + std::string(1, '\0'));
    ASSERT_NE(at, std::string::npos) << name;
    for (size_t i = at - std::min(at, kAround); i < std::min(bytes.size(), at + kAround); ++i) places.insert(i);
  }
  int num_noticed = 0;
  for (const size_t place : places) {
    for (const int change : {0x01, 0x10, 0xff}) {
      std::string damaged = bytes;
      damaged[place] = static_cast<char>(damaged[place] ^ change);
      std::ofstream(path_, std::ios::binary) << damaged;
      num_noticed += !failure_of([&] {
                        const Dataset dataset(path_);
                        dataset.provenance("prompt");
                        dataset.read(0);
                      }).empty();
    }
  }
  EXPECT_GT(num_noticed, static_cast<int>(places.size()));
}

TEST_F(DatasetFile, RefusesAttributesOfAnotherShapeOrType) {
  write();
  std::string bytes;
  {
    std::ifstream stream(path_, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(stream), {});
  }
  const auto message_with = [&](const std::string& name, const std::string& from, const std::string& to) {
    const size_t begin = bytes.find(name + std::string(1, '\0')), at = bytes.find(from, begin);
    EXPECT_LT(at, begin + 64) << name;
    std::string damaged = bytes;
    damaged.replace(at, to.size(), to);
    std::ofstream(path_, std::ios::binary) << damaged;
    return failure_of([&] { Dataset dataset(path_); });
  };
  using namespace std::string_literals;
  // Datatype message: class and version, bits, size; of integers then offset and precision.
  const std::string int64 = "\x10\x08\0\0\x08\0\0\0\0\0\x40\0"s;
  const std::string place = "; " + path_ + ", attribute ";
  for (const std::string& spoiled : {"\x10\x08\0\0\x08\0\0\0\x07\0\x40\0"s,   // bits 7 to 71 of 64
                                     "\x10\x08\0\0\x08\0\0\0\0\0\x20\0"s,     // 32 of 64 bits
                                     "\x10\x00\0\0\x08\0\0\0\0\0\x40\0"s}) {  // without sign
    const std::string message = message_with("version", int64, spoiled);
    EXPECT_NE(message.find("packed file: got "), std::string::npos) << message;
    EXPECT_NE(message.find("; delete it and pack the data again"), std::string::npos) << message;
  }
  std::string message = message_with("version", int64, "\x10\x00\0\0\x08\0\0\0\0\0\x40\0"s);
  EXPECT_NE(message.find("got another type of value, expected that of the format" + place + "version"),
            std::string::npos)
      << message;
  message = message_with("index_xxh3", "\x13\x10\0\0"s, "\x13\x10\0\0\xff\xff\xff\x7f"s);
  EXPECT_NE(message.find("; delete it and pack the data again"), std::string::npos) << message;
}

/// H5Aread writes all of them, whatever room the reader has.
TEST_F(DatasetFile, RefusesAttributesOfManyValues) {
  using namespace std::string_literals;
  const std::string text(32000, 'A');
  const auto bytes_of = [](uint64_t number) {
    return std::string(reinterpret_cast<const char*>(&number), sizeof number);
  };
  // An attribute message: the sizes of name, datatype and dataspace, and these, each in multiples of 8; then the
  // values. What a text took becomes a list: dataspaces of one dim are 8 bytes longer, datatypes of numbers, too.
  const auto message_with = [&](const std::string& name, const std::string& sizes, const std::string& parts) {
    std::ifstream stream(path_, std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(stream), {}};
    const size_t at = bytes.find(name);
    EXPECT_NE(at, std::string::npos) << name;
    bytes.replace(at - 4, 4, sizes).replace(at + name.size(), parts.size(), parts);
    std::ofstream(path_, std::ios::binary) << bytes;
    return failure_of([&] { Dataset dataset(path_); });
  };
  const auto list_of = [&](uint64_t rows) { return "\1\1\0\0\0\0\0\0"s + bytes_of(rows); };

  write_with([&](H5File& file, const std::string& hash) {
    file.set_attribute("version", text);
    file.set_attribute("index_xxh3", hash);
  });
  const std::string int64 = "\x10\x08\0\0\x08\0\0\0\0\0\x40\0\0\0\0\0"s;
  std::string message = message_with("version\0"s, "\x0c\0\x10\0"s, int64 + list_of((text.size() - 16) / 8));
  EXPECT_NE(message.find("packed file: got a list of values, expected one; " + path_ + ", attribute version"),
            std::string::npos)
      << message;

  write_with([&](H5File& file, const std::string&) {
    file.set_attribute("version", format::kVersion);
    file.set_attribute("index_xxh3", text);
  });
  const std::string text_of_8 = "\x13\x10\0\0\x08\0\0\0"s;
  message = message_with("index_xxh3\0\0\0\0\0\0"s, "\x08\0\x10\0"s, text_of_8 + list_of((text.size() - 8) / 8));
  EXPECT_NE(message.find("packed file: got a list of values, expected one; " + path_ + ", attribute index_xxh3"),
            std::string::npos)
      << message;
}

TEST_F(DatasetFile, RefusesRowsThatTheFileCannotHold) {
  write();
  std::string bytes;
  {
    std::ifstream stream(path_, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(stream), {});
  }
  // The dataspace of samples/ends: rows and columns, 8 bytes each.
  const auto dims = [](uint64_t rows) {
    const uint64_t both[2] = {rows, format::kNumSampleEnds};
    return std::string(reinterpret_cast<const char*>(both), sizeof both);
  };
  const auto refuses = [&](const std::string& damaged) {
    std::ofstream(path_, std::ios::binary) << damaged;
    const std::string message = failure_of([&] { Dataset dataset(path_); });
    EXPECT_NE(message.find("packed file: got "), std::string::npos) << message;
    EXPECT_NE(message.find("; delete it and pack the data again"), std::string::npos) << message;
    return message;
  };
  const size_t at = bytes.find(dims(kSize));
  ASSERT_NE(at, std::string::npos);
  for (const uint64_t rows : {uint64_t{1} << 55, uint64_t{1} << 62, ~uint64_t{0}, uint64_t{kSize} + 1})
    refuses(std::string(bytes).replace(at, 16, dims(rows)));
  // Rows without storage, which HDF5 would make up: the place of the table is undefined.
  PackColumns columns;
  for (int i = 0; i < 25; ++i) columns.append(sample_of(i), i + 2);
  const uint64_t begin = bytes.find(std::string(reinterpret_cast<const char*>(columns.sample_ends.data()), 80));
  const size_t place = bytes.find(std::string(reinterpret_cast<const char*>(&begin), sizeof begin), at);
  ASSERT_LT(place, at + 256);
  for (const uint64_t rows : {uint64_t{kSize}, uint64_t{1} << 55}) {
    std::string damaged = std::string(bytes).replace(at, 16, dims(rows)).replace(place, 8, std::string(8, '\xff'));
    const uint64_t size = rows * format::kNumSampleEnds * 8;
    damaged.replace(place + 8, 8, std::string(reinterpret_cast<const char*>(&size), sizeof size));
    const std::string message = refuses(damaged);
    EXPECT_NE(message.find(concat("got ", rows, " rows of 5 x 8 bytes, expected rows within the ")), std::string::npos)
        << message;
  }
}

TEST_F(DatasetFile, RefusesTokensThatGoBackwards) {
  PackColumns block;
  for (int i = 0; i < kSize; ++i) block.append(sample_of(i), i + 2);
  block.sample_ends[format::kNumSampleEnds + format::kTokensEnd] = 0;
  H5File file = H5File::create(path_);
  create_tables(file, rows_of(block));
  write_tables(file, block, TableRows{});
  IndexHash hash;
  hash.add(block);
  file.set_attribute("schema", format::kSchema);
  file.set_attribute("version", format::kVersion);
  file.set_attribute("image_token", 151655);
  file.set_attribute("video_token", 151656);
  file.set_attribute("index_xxh3", hash.text());
  file.close();
  const std::string message = failure_of([&] { Dataset dataset(path_); });
  EXPECT_NE(message.find("labels of sample 1, expected a stretch of the"), std::string::npos) << message;
}

TEST_F(DatasetFile, NamesTheDamagedSample) {
  write();
  std::string bytes;
  {
    std::ifstream stream(path_, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(stream), {});
  }
  const Sample sample = sample_of(30);
  const size_t at = bytes.find(std::string(reinterpret_cast<const char*>(sample.tokens.data()), 16));
  ASSERT_NE(at, std::string::npos);
  bytes[at] ^= 1;
  std::ofstream(path_, std::ios::binary) << bytes;
  const Dataset dataset(path_);
  expect_equal(dataset.read(29), sample_of(29));
  const std::string message = failure_of([&] { dataset.read(30); });
  EXPECT_NE(message.find("packed sample 30: got checksum"), std::string::npos) << message;
}

}  // namespace
}  // namespace hanok
