#include "dataio/safetensors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <random>

#include "base/error.h"
#include "dataio/file_io.h"
#include "tests/dataio/temp_folder.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

constexpr at::ScalarType kAllDtypes[] = {at::kDouble,
                                         at::kFloat,
                                         at::kHalf,
                                         at::kBFloat16,
                                         at::kLong,
                                         at::kInt,
                                         at::kShort,
                                         at::kChar,
                                         at::kByte,
                                         at::kBool,
                                         at::kFloat8_e4m3fn,
                                         at::kFloat8_e5m2};

Tensor random_bits(at::ScalarType dtype, const std::vector<int64_t>& shape, std::mt19937_64& random) {
  Tensor tensor = at::empty(shape, at::TensorOptions().dtype(dtype));
  auto* bytes = static_cast<uint8_t*>(tensor.mutable_data_ptr());
  for (size_t i = 0; i < tensor.nbytes(); ++i)
    bytes[i] = static_cast<uint8_t>(random() & (dtype == at::kBool ? 1 : 0xff));
  return tensor;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         (a.nbytes() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0);
}

// length + header + zeros
std::string file_bytes(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(data_bytes, '\0');
}

SafetensorsHeader parse(const std::string& bytes) {
  return parse_safetensors_header(bytes, static_cast<int64_t>(bytes.size()), "x.safetensors");
}

void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

void write_one(const std::string& path, const std::string& name, const Tensor& value) {
  write_safetensors(
      path, {{name, value.scalar_type(), value.sizes().vec()}}, {}, [&](const std::string&) { return value; });
}

TEST(Safetensors, RoundTripsEveryDtypeAndShapeBitForBit) {
  const TempFolder folder;
  std::mt19937_64 random(1);
  std::map<std::string, Tensor> tensors;
  std::vector<TensorPlan> plans;
  // Narrow dtypes first, so that nearly every tensor lies unaligned.
  for (int i = 11; i >= 0; --i) {
    for (const std::vector<int64_t>& shape : {std::vector<int64_t>{}, {0}, {3, 0, 5}, {7}, {3, 5}, {1, 2, 3, 1}}) {
      const std::string name = concat("t\u00e9nsor \"", i, "\"\n/", shape);
      tensors[name] = random_bits(kAllDtypes[i], shape, random);
      plans.push_back({name, kAllDtypes[i], shape});
    }
  }
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"\xed\x95\x9c", "line\nbreak"}};
  write_safetensors(
      folder / "a.safetensors", plans, metadata, [&](const std::string& name) { return tensors.at(name); });

  const SafetensorsFile file(folder / "a.safetensors");
  EXPECT_EQ(file.header().metadata, metadata);
  EXPECT_EQ(file.header().tensors.size(), tensors.size());
  EXPECT_EQ(file.header().data_begin % 8, 0);
  for (const auto& [name, tensor] : tensors) {
    const Tensor view = file.view(name);
    EXPECT_TRUE(same_bits(view, tensor)) << name;
    if (view.numel() > 0) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(view.const_data_ptr()) % view.element_size(), 0u) << name;
    }
  }
}

TEST(Safetensors, AnEmptyFileOfTensorsIsAFile) {
  const TempFolder folder;
  write_safetensors(folder / "a.safetensors", {}, {}, [](const std::string&) { return Tensor(); });
  EXPECT_TRUE(SafetensorsFile(folder / "a.safetensors").header().tensors.empty());
}

TEST(Safetensors, AlignedViewsAreTheMapItselfAndOutliveTheFileObject) {
  const TempFolder folder;
  std::mt19937_64 random(2);
  const Tensor value = random_bits(at::kFloat, {1000}, random);
  write_one(folder / "a.safetensors", "w", value);
  auto file = std::make_unique<SafetensorsFile>(folder / "a.safetensors");
  const Tensor a = file->view("w"), b = file->view("w");
  EXPECT_EQ(a.const_data_ptr(), b.const_data_ptr());
  file.reset();
  EXPECT_TRUE(same_bits(a, value));
}

// Of the maps of one file in this process.
int64_t resident_bytes(const std::string& path) {
  std::ifstream maps("/proc/self/smaps");
  int64_t total = 0;
  bool ours = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.substr(0, line.find(' ')).find('-') != std::string::npos) ours = line.ends_with(path);  // BEGIN-END ...
    if (ours && line.starts_with("Rss:")) total += std::stoll(line.substr(4)) * 1024;
  }
  return total;
}

TEST(Safetensors, ForgottenPagesLeaveMemoryAndComeBackWhenTouched) {
  const TempFolder folder;
  const std::string path = folder / "a.safetensors";
  constexpr int64_t kBytes = 16 << 20;
  write_one(path, "w", at::full({kBytes}, 3, at::kByte));
  const SafetensorsFile file(path);
  const Tensor view = file.view("w");
  EXPECT_LT(resident_bytes(path), kBytes / 4);  // opening reads the header only
  EXPECT_EQ(view.sum().item<int64_t>(), 3 * kBytes);
  EXPECT_GE(resident_bytes(path), kBytes);
  file.forget("w");
  EXPECT_EQ(resident_bytes(path), 0);
  EXPECT_EQ(view[kBytes - 1].item<int>(), 3);
}

struct BadHeader {
  const char* header;
  size_t data_bytes;
  const char* message;  // part of it
};
constexpr BadHeader kBadHeaders[] = {
    {R"([])", 0, "begins with '{'"},
    {R"( {})", 0, "begins with '{'"},
    {"\xef\xbb\xbf{}", 0, "begins with '{'"},
    {R"({)", 0, "error at its byte"},
    {R"({}x)", 0, "error at its byte"},
    {R"({}{})", 0, "error at its byte"},
    {R"({"a":1})", 0, "got a number, expected a JSON object"},
    {R"({"a":[]})", 0, "got a list, expected a JSON object"},
    {R"({"a":null})", 0, "got null"},
    {R"({"a":{}})", 0, "incomplete"},
    {R"({"a":{"dtype":"U8","shape":[1]}})", 1, "incomplete"},
    {R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1, "incomplete"},
    {R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1, "incomplete"},
    {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":1}})", 1, "got a key 'more'"},
    {R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "twice"},
    {R"({"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", 1, "twice"},
    {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
     1,
     "twice"},
    {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0061":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
     1,
     "twice"},
    {R"({"__metadata__":{},"__metadata__":{}})", 0, "twice"},
    {R"({"__metadata__":{"a":"b","a":"c"}})", 0, "twice"},
    {R"({"__metadata__":{"a":1}})", 0, "got a number, expected a string"},
    {R"({"__metadata__":{"a":{}}})", 0, "got an object, expected a string"},
    {R"({"__metadata__":[]})", 0, "got a list"},
    {R"({"a":{"dtype":"U9","shape":[1],"data_offsets":[0,1]}})", 1, "got 'U9', expected one of [F64, F32"},
    {R"({"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}})", 1, "expected one of"},
    {R"({"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})", 1, "expected a string"},
    {R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1, "expected a list"},
    {R"({"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}})", 1, "expected integers"},
    {R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1, "expected integers"},
    {R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1, "no 64-bit integer"},
    {R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1, "a negative number"},
    {R"({"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}})", 0, "a negative number"},
    {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1]}})", 1, "got 1 numbers, expected 2"},
    {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})", 1, "got 3 numbers, expected 2"},
    {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1, "got bytes 1 to 0"},
    {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 1, "cut short"},
    {R"({"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,0]}})", 0, "2^63 - 1"},
    {R"({"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,0]}})", 0, "no 64-bit integer"},
    {R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0, "fits in 63 bits"},
    {R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "fits in 63 bits"},
    {R"({"a":{"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}})", 0, "fits in 63 bits"},
    {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,3]}})", 3, "got 3 bytes, expected 4"},
    {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 2, "got 2 bytes, expected the 1"},
    {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2, "no holes"},
    {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
     3,
     "no overlaps"},
    {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
     1,
     "no overlaps"},
    {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[0],"data_offsets":[5,5]}})",
     5,
     "no holes"},
    {"{\"\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "error at its byte"},
};

TEST(Safetensors, RefusesEveryHeaderThatLies) {
  for (const BadHeader& bad : kBadHeaders) {
    const std::string bytes = file_bytes(bad.header, bad.data_bytes);
    const std::string message = message_of(ErrorKind::kCheckpoint, [&] { parse(bytes); });
    EXPECT_NE(message.find(bad.message), std::string::npos) << bad.header << "\n  " << message;
    EXPECT_NE(message.find("x.safetensors"), std::string::npos) << message;
  }
}

TEST(Safetensors, AZeroByteDoesNotEndTheHeader) {
  using std::string_literals::operator""s;
  for (const std::string& header : {"{}\0"s, "{}\0{\"hidden\":1}"s, "{\0}"s}) {
    message_of(ErrorKind::kCheckpoint, [&] { parse(file_bytes(header, 0)); });
  }
}

TEST(Safetensors, AcceptsPaddingAndZeroSizesAnywhere) {
  const SafetensorsHeader header = parse(file_bytes(
      R"({"z":{"dtype":"F32","shape":[0],"data_offsets":[1,1]},"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},)"
      R"("y":{"dtype":"F32","shape":[2,0],"data_offsets":[0,0]},"b":{"dtype":"I16","shape":[1],"data_offsets":[1,3]}}    )",
      3));
  EXPECT_EQ(header.tensors.size(), 4u);
  EXPECT_EQ(header.tensors.at("b").begin, 1);
}

TEST(Safetensors, RefusesAHeaderLengthBeyondFileOrLimit) {
  for (const std::string& bytes :
       {std::string(), std::string(7, '\0'), std::string(8, '\0'), std::string(8, '\xff') + "{}"}) {
    message_of(ErrorKind::kCheckpoint, [&] { parse(bytes); });
  }
  std::string bytes = file_bytes("{}", 0);
  const uint64_t lie = 100'000'001;
  std::memcpy(bytes.data(), &lie, 8);
  const std::string message =
      message_of(ErrorKind::kCheckpoint, [&] { parse_safetensors_header(bytes, 1'000'000'000, "x"); });
  EXPECT_NE(message.find("expected at most 100000000"), std::string::npos) << message;
}

TEST(Safetensors, DeepNestingAndLongListsAreRefusedAtTheirBeginning) {
  const auto start = std::chrono::steady_clock::now();
  message_of(ErrorKind::kCheckpoint, [&] { parse(file_bytes(R"({"a":{"shape":)" + std::string(20'000'000, '['), 0)); });
  std::string list = R"({"a":{"shape":[0)";
  for (int i = 0; i < 5'000'000; ++i) list += ",0";
  const std::string message = message_of(ErrorKind::kCheckpoint, [&] { parse(file_bytes(list + "]}}", 0)); });
  EXPECT_NE(message.find("more than 64 numbers"), std::string::npos) << message;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

// Whatever the bytes, parsing ends in a valid header or in a kCheckpoint error.
TEST(Safetensors, MutatedHeadersNeverCrash) {
  std::mt19937_64 random(3);
  const std::string seed =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("b":{"dtype":"BOOL","shape":[],"data_offsets":[24,25]},"c":{"dtype":"I8","shape":[0,9],"data_offsets":[25,25]}})";
  const std::vector<std::string> words = {"{",         "}",
                                          "[",         "]",
                                          ",",         ":",
                                          "\"",        "0",
                                          "-1",        "18446744073709551616",
                                          "1e9",       "null",
                                          "\"a\"",     "\"dtype\"",
                                          "\"shape\"", "\"data_offsets\"",
                                          "\"F64\"",   "\\u0000",
                                          "\xc3",      " "};
  int accepted = 0;
  for (int trial = 0; trial < 100'000; ++trial) {
    std::string header = seed;
    for (uint64_t edits = 1 + random() % 4; edits > 0 && !header.empty(); --edits) {
      const size_t at = random() % header.size();
      switch (random() % 4) {
        case 0: header[at] = static_cast<char>(random()); break;
        case 1: header[at] = static_cast<char>(header[at] ^ (1 << random() % 8)); break;
        case 2: header.erase(at, random() % 8); break;
        default: header.insert(at, words[random() % words.size()]);
      }
    }
    const std::string bytes = file_bytes(header, 25);
    try {
      const SafetensorsHeader parsed = parse(bytes);
      ++accepted;
      int64_t total = 0;
      for (const auto& [name, entry] : parsed.tensors) total += size_bytes(entry.dtype, entry.shape);
      ASSERT_EQ(total, 25) << header;
    } catch (const Error& error) {
      ASSERT_EQ(name(error.kind()), "checkpoint") << error.what();
    }
  }
  EXPECT_GT(accepted, 100);  // edits inside names are harmless: the loop does reach the good path
}

TEST(Safetensors, SizesOfShapesAreChecked) {
  EXPECT_EQ(size_bytes(at::kFloat, {2, 3}), 24);
  EXPECT_EQ(size_bytes(at::kDouble, {}), 8);
  EXPECT_EQ(size_bytes(at::kDouble, {5, 0}), 0);
  message_of(ErrorKind::kShape, [] { size_bytes(at::kFloat, {-1}); });
  message_of(ErrorKind::kShape, [] { size_bytes(at::kFloat, {1LL << 61}); });
  for (const at::ScalarType dtype : kAllDtypes) EXPECT_EQ(dtype_from_name(dtype_name(dtype)), dtype);
  EXPECT_FALSE(dtype_from_name("F31").has_value());
  message_of(ErrorKind::kShape, [] { dtype_name(at::kComplexFloat); });
}

TEST(Safetensors, APipeIsNotWaitedFor) {
  const TempFolder folder;
  ASSERT_EQ(mkfifo((folder / "x.safetensors").c_str(), 0600), 0);
  EXPECT_ERROR(error_of([&] { SafetensorsFile(folder / "x.safetensors"); }),
               ErrorKind::kCheckpoint,
               "safetensors file: got no regular file, expected a file");
}

TEST(Safetensors, MissingFilesAndNamesAreNamed) {
  const TempFolder folder;
  EXPECT_NE(message_of(ErrorKind::kCheckpoint, [&] { SafetensorsFile(folder / "none.safetensors"); })
                .find("none.safetensors"),
            std::string::npos);
  message_of(ErrorKind::kCheckpoint, [&] { SafetensorsFile(folder.path()); });
  write_bytes(folder / "empty.safetensors", "");
  message_of(ErrorKind::kCheckpoint, [&] { SafetensorsFile(folder / "empty.safetensors"); });
  write_one(folder / "a.safetensors", "w", at::zeros({2}));
  const SafetensorsFile file(folder / "a.safetensors");
  EXPECT_NE(message_of(ErrorKind::kCheckpoint, [&] { file.view("v"); }).find("'v'"), std::string::npos);
}

TEST(SafetensorsWriter, AFullDiskLeavesTheEarlierFileAndNoPart) {
  const TempFolder folder;
  const std::string path = folder / "a.safetensors";
  write_one(path, "old", at::ones({3}));
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{1 << 16, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  const std::string message = message_of(ErrorKind::kIo, [&] { write_one(path, "new", at::zeros({1 << 20})); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  for (const char* part : {path.c_str(), "41943", "bytes are free"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
  EXPECT_TRUE(SafetensorsFile(path).header().tensors.contains("old"));
}

TEST(SafetensorsWriter, NoSpaceWhileWritingIsReported) {
  const TempFolder folder;
  const std::string path = folder / "a.safetensors";
  std::filesystem::create_symlink("/dev/full", path + ".tmp");  // cannot reserve, and every write says ENOSPC
  const std::string message = message_of(ErrorKind::kIo, [&] { write_one(path, "w", at::zeros({1000})); });
  EXPECT_NE(message.find("No space left"), std::string::npos) << message;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  message_of(ErrorKind::kIo, [&] { write_one(folder / "none/a.safetensors", "w", at::zeros({1})); });
}

TEST(SafetensorsWriter, AProducerThatBreaksThePlanLeavesNothing) {
  const TempFolder folder;
  const std::vector<TensorPlan> plans = {{"a", at::kFloat, {2}}, {"b", at::kFloat, {3}}};
  const std::string path = folder / "a.safetensors";
  const std::string message = message_of(ErrorKind::kShape, [&] {
    write_safetensors(path, plans, {}, [](const std::string&) { return at::zeros({2}); });
  });
  EXPECT_NE(message.find("'b'"), std::string::npos) << message;
  message_of(ErrorKind::kShape, [&] {
    write_safetensors(path, plans, {}, [](const std::string&) { return at::zeros({2}, at::kDouble); });
  });
  message_of(ErrorKind::kShape,
             [&] { write_safetensors(path, plans, {}, [](const std::string&) { return Tensor(); }); });
  message_of(ErrorKind::kShape, [&] {
    write_safetensors(path, {plans[0], plans[0]}, {}, [](const std::string&) { return at::zeros({2}); });
  });
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(SafetensorsWriter, AsksForOneTensorAtATimeInTheOrderOfThePlan) {
  const TempFolder folder;
  std::string asked;
  write_safetensors(
      folder / "a.safetensors", {{"z", at::kByte, {1}}, {"a", at::kFloat, {2}}}, {}, [&](const std::string& name) {
        asked += name;
        return name == "z" ? at::zeros({1}, at::kByte) : at::ones({4}).slice(0, 0, 4, 2);  // not contiguous
      });
  EXPECT_EQ(asked, "za");
  EXPECT_TRUE(at::equal(SafetensorsFile(folder / "a.safetensors").view("a"), at::ones({2})));
}

class WeightFolderTest : public ::testing::Test {
 protected:
  void write_index(const std::string& text) { write_bytes(folder_ / "model.safetensors.index.json", text); }
  std::string open_error() {
    return message_of(ErrorKind::kCheckpoint, [&] { WeightFolder weights(folder_.path()); });
  }
  TempFolder folder_;
};

TEST_F(WeightFolderTest, OpensASingleFile) {
  write_one(folder_ / "model.safetensors", "w", at::ones({2}));
  const WeightFolder weights(folder_.path());
  EXPECT_EQ(weights.names(), std::vector<std::string>{"w"});
  EXPECT_TRUE(at::equal(weights.view("w"), at::ones({2})));
  EXPECT_EQ(weights.entry("w").shape, std::vector<int64_t>{2});
  weights.forget("w");
  EXPECT_FALSE(weights.contains("v"));
  message_of(ErrorKind::kCheckpoint, [&] { weights.view("v"); });
}

TEST_F(WeightFolderTest, OpensTheShardsOfAnIndex) {
  write_one(folder_ / "m-1.safetensors", "a", at::ones({2}));
  write_one(folder_ / "m-2.safetensors", "b", at::zeros({3}));
  write_index(R"({"metadata":{"total_size":20},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})");
  const WeightFolder weights(folder_.path());
  EXPECT_EQ(weights.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(at::equal(weights.view("b"), at::zeros({3})));
}

TEST_F(WeightFolderTest, RefusesAnIndexThatDisagreesWithItsShards) {
  write_one(folder_ / "m-1.safetensors", "a", at::ones({2}));
  write_index(R"({"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})");
  EXPECT_NE(open_error().find("m-2.safetensors"), std::string::npos);
  write_index(R"({"weight_map":{"a":"m-1.safetensors","b":"m-1.safetensors"}})");
  EXPECT_NE(open_error().find("'b'"), std::string::npos);
  write_one(folder_ / "m-2.safetensors", "c", at::zeros({3}));
  write_safetensors(
      folder_ / "m-1.safetensors", {{"a", at::kFloat, {1}}, {"c", at::kFloat, {1}}}, {}, [](const std::string&) {
        return at::zeros({1});
      });
  write_index(R"({"weight_map":{"a":"m-1.safetensors"}})");
  EXPECT_NE(open_error().find("no such entry in the index"), std::string::npos);
  write_index(R"({"weight_map":{"a":"m-1.safetensors","c":"m-2.safetensors"}})");  // "c" is in both files
  EXPECT_NE(open_error().find("no such entry in the index"), std::string::npos);
}

TEST_F(WeightFolderTest, RefusesShardsOutsideTheFolderAndOtherFormats) {
  write_one(folder_ / "m.safetensors", "a", at::ones({2}));
  std::filesystem::create_directory(folder_ / "sub");
  write_one(folder_ / "sub/m.safetensors", "a", at::ones({2}));
  for (const char* name :
       {"sub/m.safetensors", "../m.safetensors", "/etc/m.safetensors", "..safetensors", "m.bin", ""}) {
    write_index(concat(R"({"weight_map":{"a":")", name, R"("}})"));
    EXPECT_NE(open_error().find("of this folder"), std::string::npos) << name;
  }
  write_index(R"({"weight_map":{"a":"m\u0000.safetensors"}})");
  open_error();
  write_index(R"({"weight_map":{"a":["m.safetensors"]}})");
  open_error();
}

TEST_F(WeightFolderTest, RefusesAnIndexThatCanBeReadInTwoWays) {
  write_one(folder_ / "m.safetensors", "a", at::ones({2}));
  write_one(folder_ / "n.safetensors", "a", at::ones({2}));
  write_index(R"({"weight_map":{"a":"m.safetensors","a":"n.safetensors"}})");
  EXPECT_NE(open_error().find("twice"), std::string::npos);
  write_index(R"({"weight_map":)" + std::string(100'000, '['));
  EXPECT_NE(open_error().find("levels"), std::string::npos);
  for (const char* text : {"", "[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{})"}) {
    write_index(text);
    open_error();
  }
  write_index(std::string(R"({"weight_map":{"a":"m.safetensors"}})") + '\0' + "x");
  EXPECT_NE(open_error().find("zero byte"), std::string::npos);
}

TEST_F(WeightFolderTest, SaysThatPickleIsNotRead) {
  write_bytes(folder_ / "pytorch_model.bin", "x");
  EXPECT_NE(open_error().find("pickle"), std::string::npos);
}

}  // namespace
}  // namespace hanok
