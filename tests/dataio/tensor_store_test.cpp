#include "dataio/tensor_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <thread>

#include "base/error.h"
#include "dataio/safetensors.h"
#include "dataio/store/store_format.h"
#include "dataio/store/strided_runs.h"
#include "tests/dataio/temp_folder.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Random = std::mt19937_64;

// Without the fsync that thousands of trials would wait for.
void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

bool contains_text(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

int64_t below(Random& random, int64_t bound) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(bound));
}

struct Global {
  StoredTensor tensor;
  Tensor flat;  // all elements, 1-D
};

Global random_global(const std::string& name, at::ScalarType dtype, const std::vector<int64_t>& shape, Random& random) {
  const int64_t elements = size_bytes(dtype, shape) / static_cast<int64_t>(c10::elementSize(dtype));
  Tensor flat = at::empty({elements}, at::TensorOptions().dtype(dtype));
  auto* bytes = static_cast<uint8_t*>(flat.mutable_data_ptr());
  for (size_t i = 0; i < flat.nbytes(); ++i) bytes[i] = static_cast<uint8_t>(random());
  return {{name, dtype, shape}, flat};
}

// For each rank the stretches that it holds.
using Partition = std::vector<std::vector<StoredRun>>;

std::vector<int64_t> random_cuts(int64_t size, int parts, Random& random) {
  std::vector<int64_t> cuts = {0, size};
  while (static_cast<int>(cuts.size()) <= parts) cuts.push_back(below(random, size + 1));
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

// One of: blocks of dim 0 (also empty ones), blocks of dim 1, everything everywhere, or stretches dealt out at random
// in random order with some of them twice.
Partition random_partition(const StoredTensor& tensor, int ranks, Random& random) {
  int64_t elements = 1;
  for (const int64_t dim : tensor.shape) elements *= dim;
  Partition out(static_cast<size_t>(ranks));
  const int64_t kind = below(random, 4);
  if (kind == 0) {
    const std::vector<int64_t> cuts = random_cuts(elements, ranks, random);
    for (int r = 0; r < ranks; ++r) out[r].push_back({cuts[r], cuts[r + 1] - cuts[r]});
  } else if (kind == 1 && tensor.shape.size() >= 2 && elements > 0) {
    const int64_t row = elements / tensor.shape[0], inner = row / tensor.shape[1];
    const std::vector<int64_t> cuts = random_cuts(tensor.shape[1], ranks, random);
    for (int r = 0; r < ranks; ++r) {
      for (int64_t i = 0; i < tensor.shape[0]; ++i)
        out[r].push_back({i * row + cuts[r] * inner, (cuts[r + 1] - cuts[r]) * inner});
    }
  } else if (kind == 2) {
    for (auto& runs : out) runs.push_back({0, elements});
  } else {
    const std::vector<int64_t> cuts = random_cuts(elements, 1 + static_cast<int>(below(random, 40)), random);
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      const StoredRun run{cuts[i], cuts[i + 1] - cuts[i]};
      out[below(random, ranks)].push_back(run);
      if (below(random, 4) == 0) out[below(random, ranks)].push_back(run);
    }
    for (auto& runs : out) std::shuffle(runs.begin(), runs.end(), random);
  }
  return out;
}

Tensor values_of(const Global& global, const std::vector<StoredRun>& runs) {
  std::vector<Tensor> parts = {global.flat.slice(0, 0, 0)};
  for (const StoredRun& run : runs)
    parts.push_back(global.flat.slice(0, run.global_begin, run.global_begin + run.size));
  return at::cat(parts);
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() &&
         (a.nbytes() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0);
}

std::vector<StoredTensor> descriptions(const std::vector<Global>& globals) {
  std::vector<StoredTensor> out;
  for (const Global& global : globals) out.push_back(global.tensor);
  return out;
}

void write_shards(const std::string& directory, const std::vector<Global>& globals, int ranks, Random& random) {
  std::vector<std::vector<StoredPiece>> pieces(static_cast<size_t>(ranks));
  for (const Global& global : globals) {
    const Partition partition = random_partition(global.tensor, ranks, random);
    for (int r = 0; r < ranks; ++r) {
      if (partition[r].empty() && below(random, 2) == 0) continue;  // an empty piece and no piece are both fine
      pieces[r].push_back({global.tensor.name, partition[r], values_of(global, partition[r])});
    }
  }
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) threads.emplace_back([&, r] { write_store_shard(directory, r, pieces[r]); });
  for (std::thread& thread : threads) thread.join();
}

std::vector<Global> some_globals(Random& random) {
  return {random_global("w/a.weight", at::kFloat, {17, 23}, random),
          random_global("m/\u00e9", at::kDouble, {5, 3, 7}, random),
          random_global("b", at::kBFloat16, {101}, random),
          random_global("step", at::kLong, {}, random),
          random_global("none", at::kFloat, {0, 4}, random),
          random_global("bytes", at::kByte, {13}, random)};
}

// A small store of two shards with matrices cut on both dims.
void write_small_store(const std::string& directory, const Json& state = {{"step", 7}}) {
  Random random(5);
  const std::vector<Global> globals = some_globals(random);
  write_shards(directory, globals, 2, random);
  commit_store(directory, 2, descriptions(globals), state);
}

void check_and_read_all(const std::string& directory) {
  const TensorStore store(directory);
  store.verify();
  store.check_complete();
  for (const StoredTensor& tensor : store.tensors()) {
    int64_t elements = 1;
    for (const int64_t dim : tensor.shape) elements *= dim;
    Tensor out = at::empty({elements}, at::TensorOptions().dtype(tensor.dtype));
    store.read(tensor.name, {{0, elements}}, out);
  }
}

TEST(StridedRuns, AMatrixCutByColumnsIsOneLine) {
  std::vector<StoredRun> runs;
  for (int64_t row = 0; row < 5000; ++row) runs.push_back({row * 4096 + 512, 512});
  const std::vector<StridedRun> compressed = compress_runs(runs);
  ASSERT_EQ(compressed.size(), 1u);
  EXPECT_EQ(compressed[0].begin, 512);
  EXPECT_EQ(compressed[0].size, 512);
  EXPECT_EQ(compressed[0].stride, 4096);
  EXPECT_EQ(compressed[0].count, 5000);
  EXPECT_EQ(count_elements(compressed, 5000 * 4096), 5000 * 512);
  EXPECT_EQ(count_elements(compressed, 4999 * 4096 + 1023), -1);
}

TEST(StridedRuns, NeighboursAreJoinedAndEmptyRunsVanish) {
  const std::vector<StridedRun> runs = compress_runs({{0, 0}, {4, 2}, {6, 3}, {20, 0}, {9, 1}});
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].begin, 4);
  EXPECT_EQ(runs[0].size, 6);
}

TEST(StridedRuns, ImpossibleRunsAreFoundWithoutOverflow) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  for (const StridedRun& run : {StridedRun{-1, 1, 1, 1},
                                {0, 0, 1, 1},
                                {0, 1, 0, 2},
                                {0, 1, 1, 0},
                                {0, 2, 1, 2},
                                {9, 2, 2, 1},
                                {kMax, 1, 1, 1},
                                {0, 1, kMax, kMax},
                                {kMax, kMax, kMax, kMax},
                                {0, kMax, kMax, 2}}) {
    EXPECT_EQ(count_elements({run}, 10), -1);
  }
  EXPECT_EQ(count_elements({{0, 10, 10, 1}, {0, 1, 2, 5}}, 10), 15);
}

// Against a table of owners, element by element.
TEST(StridedRuns, MatchingEqualsLookingUpEveryElement) {
  Random random(6);
  int complete = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    const int64_t size = 1 + below(random, 60);
    std::vector<std::vector<StridedRun>> pieces;
    std::vector<bool> held(static_cast<size_t>(size));
    for (int64_t p = below(random, 6); p >= 0; --p) {
      std::vector<StoredRun> runs;
      for (int64_t r = below(random, 4); r >= 0; --r) {
        const int64_t begin = below(random, size);
        runs.push_back({begin, below(random, size - begin + 1)});
      }
      const StridedRun strided{below(random, size), 1, 1 + below(random, 5), 0};
      for (const StoredRun& run : runs) std::fill_n(held.begin() + run.global_begin, run.size, true);
      pieces.push_back(compress_runs(runs));
      for (int64_t at = strided.begin; at < size; at += strided.stride) {
        held[at] = true;
        if (at == strided.begin) pieces.back().push_back({at, 1, strided.stride, 0});
        ++pieces.back().back().count;
      }
      ASSERT_GE(count_elements(pieces.back(), size), 0);
    }
    std::vector<StoredRun> wanted;
    for (int64_t w = below(random, 5); w >= 0; --w) {
      const int64_t begin = below(random, size);
      wanted.push_back({begin, below(random, size - begin + 1)});  // may overlap each other
    }
    std::vector<const std::vector<StridedRun>*> pointers;
    std::vector<std::vector<int64_t>> index_of(pieces.size());  // element of a piece -> global index
    for (size_t p = 0; p < pieces.size(); ++p) {
      pointers.push_back(&pieces[p]);
      for (const StridedRun& run : pieces[p]) {
        for (int64_t i = 0; i < run.count * run.size; ++i)
          index_of[p].push_back(run.begin + i / run.size * run.stride + i % run.size);
      }
    }
    std::vector<int64_t> expected;
    int64_t missing = -1;
    for (const StoredRun& run : wanted) {
      for (int64_t i = run.global_begin; i < run.global_begin + run.size; ++i) {
        expected.push_back(i);
        if (!held[i] && (missing < 0 || i < missing)) missing = i;
      }
    }
    std::vector<int64_t> got(expected.size(), -1);
    const int64_t result = match_runs(pointers, wanted, [&](size_t piece, int64_t from, int64_t to, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        ASSERT_EQ(got.at(to + i), -1) << "copied twice";
        got.at(to + i) = index_of.at(piece).at(from + i);
      }
    });
    ASSERT_EQ(result, missing) << "trial " << trial;
    if (missing < 0) {
      ASSERT_EQ(got, expected) << "trial " << trial;
      ++complete;
    }
  }
  EXPECT_GT(complete, 300);
}

TEST(TensorStore, AnyPartitionReadsWhatAnyOtherWrote) {
  Random random(7);
  const at::ScalarType dtypes[] = {at::kFloat, at::kBFloat16, at::kDouble, at::kLong, at::kByte};
  for (int trial = 0; trial < 60; ++trial) {
    const TempFolder folder;
    std::vector<Global> globals;
    for (int64_t i = below(random, 6); i >= 0; --i) {
      std::vector<int64_t> shape;
      for (int64_t d = below(random, 4); d > 0; --d) shape.push_back(below(random, 12));
      globals.push_back(random_global(concat("tensor.", i), dtypes[below(random, 5)], shape, random));
    }
    const int writers = 1 + static_cast<int>(below(random, 8)), readers = 1 + static_cast<int>(below(random, 8));
    write_shards(folder / "step_1", globals, writers, random);
    commit_store(folder / "step_1", writers, descriptions(globals), {{"trial", trial}});
    const TensorStore store(folder / "step_1");
    for (int r = 0; r < readers; ++r) store.verify(r, readers);
    EXPECT_EQ(store.state()["trial"], trial);
    ASSERT_EQ(store.tensors().size(), globals.size());
    for (const Global& global : globals) {
      ASSERT_TRUE(store.contains(global.tensor.name));
      for (const std::vector<StoredRun>& runs : random_partition(global.tensor, readers, random)) {
        const Tensor expected = values_of(global, runs);
        Tensor out = at::zeros_like(expected);
        store.read(global.tensor.name, runs, out);
        ASSERT_TRUE(same_bits(out, expected)) << "trial " << trial << ", " << global.tensor.name;
      }
    }
  }
}

TEST(TensorStore, AMatrixCutOnBothDimsStaysSmallAndFast) {
  const TempFolder folder;
  constexpr int64_t kRows = 20'000, kColumns = 64;
  constexpr int kRanks = 4;
  const Tensor whole = at::arange(kRows * kColumns, at::kInt);
  std::vector<std::vector<StoredRun>> columns(kRanks);
  for (int r = 0; r < kRanks; ++r) {
    for (int64_t i = 0; i < kRows; ++i) columns[r].push_back({i * kColumns + r * 16, 16});
    const Tensor values = whole.view({kRows, kColumns}).slice(1, r * 16, r * 16 + 16).contiguous().view({-1});
    write_store_shard(folder / "s", r, {{"w", columns[r], values}});
  }
  commit_store(folder / "s", kRanks, {{"w", at::kInt, {kRows, kColumns}}}, {});
  EXPECT_LT(fs::file_size(folder / "s/shard-0.json"), 400u);
  const TensorStore store(folder / "s");
  const auto start = std::chrono::steady_clock::now();
  Tensor out = at::empty({kRows * kColumns}, at::kInt);
  store.read("w", {{0, kRows * kColumns}}, out);
  EXPECT_TRUE(at::equal(out, whole));
  Tensor column = at::empty({kRows * 16}, at::kInt);
  store.read("w", columns[2], column);
  EXPECT_TRUE(at::equal(column.view({kRows, 16}), whole.view({kRows, kColumns}).slice(1, 32, 48)));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
}

TEST(TensorStore, AStoreThatDoesNotCoverItsTensorsIsNotCommitted) {
  const TempFolder folder;
  write_store_shard(folder / "s", 0, {{"w", {{0, 4}, {6, 2}}, at::zeros({6})}});
  const std::string message = message_of(ErrorKind::kCheckpoint, [&] {
    commit_store(folder / "s", 1, {{"w", at::kFloat, {2, 4}}}, {});
  });
  EXPECT_TRUE(contains_text(message, "'w': got no piece with element 4")) << message;
  EXPECT_FALSE(fs::exists(folder / "s"));
  message_of(ErrorKind::kCheckpoint, [&] { commit_store(folder / "s", 1, {{"v", at::kFloat, {2, 4}}}, {}); });
  message_of(ErrorKind::kCheckpoint, [&] { commit_store(folder / "s", 1, {{"w", at::kDouble, {2, 4}}}, {}); });
  message_of(ErrorKind::kCheckpoint, [&] { commit_store(folder / "s", 1, {{"w", at::kFloat, {7}}}, {}); });
  message_of(ErrorKind::kIo, [&] { commit_store(folder / "s", 2, {{"w", at::kFloat, {2, 4}}}, {}); });
}

TEST(TensorStore, ReadingAsksForWhatExists) {
  const TempFolder folder;
  write_small_store(folder / "s");
  const TensorStore store(folder / "s");
  Tensor out = at::empty({4});
  EXPECT_TRUE(contains_text(message_of(ErrorKind::kCheckpoint,
                                       [&] {
                                         store.read("nobody", {{0, 4}}, out);
                                       }),
                            "nobody"));
  message_of(ErrorKind::kShape, [&] { store.read("w/a.weight", {{0, 5}}, out); });
  message_of(ErrorKind::kShape, [&] { store.read("w/a.weight", {{17 * 23 - 3, 4}}, out); });
  message_of(ErrorKind::kShape, [&] { store.read("w/a.weight", {{-1, 4}}, out); });
  message_of(ErrorKind::kShape, [&] { store.read("bytes", {{0, 4}}, out); });
  Tensor none = at::empty({0});
  store.read("none", {}, none);
  EXPECT_FALSE(store.contains("nobody"));
}

TEST(TensorStore, PiecesThatDoNotFitTheirRunsAreRefused) {
  const TempFolder folder;
  message_of(ErrorKind::kShape, [&] { write_store_shard(folder / "s", 0, {{"w", {{0, 4}}, at::zeros({3})}}); });
  message_of(ErrorKind::kShape, [&] { write_store_shard(folder / "s", 0, {{"w", {{0, 4}}, at::zeros({2, 2})}}); });
  message_of(ErrorKind::kShape, [&] { write_store_shard(folder / "s", 0, {{"w", {{0, 4}}, Tensor()}}); });
  const StoredPiece piece{"w", {{0, 4}}, at::zeros({4})};
  message_of(ErrorKind::kShape, [&] { write_store_shard(folder / "s", 0, {piece, piece}); });
}

TEST(TensorStore, StateComesBackBitForBit) {
  const TempFolder folder;
  const Json state = {
      {"lr", 0.1 + 0.2}, {"seed", std::numeric_limits<uint64_t>::max()}, {"text", "\xed\x95\x9c\n"}, {"tiny", 5e-324}};
  write_small_store(folder / "s", state);
  EXPECT_EQ(TensorStore(folder / "s").state(), state);
  EXPECT_EQ(TensorStore(folder / "s").state()["lr"].get<double>(), 0.1 + 0.2);
  message_of(ErrorKind::kCheckpoint, [&] { write_small_store(folder / "t", {{"bad", "\xff"}}); });
}

TEST(TensorStore, OnlyTheRenameMakesAStore) {
  const TempFolder folder;
  write_store_shard(folder / "step_2", 0, {});
  EXPECT_FALSE(fs::exists(folder / "step_2"));
  EXPECT_TRUE(
      contains_text(message_of(ErrorKind::kCheckpoint, [&] { TensorStore store(folder / "step_2"); }), "manifest"));
  message_of(ErrorKind::kCheckpoint, [&] { TensorStore store(folder / "step_2.tmp"); });
  write_small_store(folder / "step_1/");
  write_file_atomically(folder / "kept.tmp", "a file, not a folder");
  remove_unfinished_stores(folder.path());
  EXPECT_FALSE(fs::exists(folder / "step_2.tmp"));
  EXPECT_TRUE(fs::exists(folder / "kept.tmp"));
  check_and_read_all(folder / "step_1");
  remove_unfinished_stores(folder / "does/not/exist");
}

TEST(TensorStore, ACommitReplacesAnEarlierStoreAndLeavesNoStrangers) {
  const TempFolder folder;
  write_small_store(folder / "s", {{"step", 1}});
  write_file_atomically(folder / "s/shard-0.json", "damaged");
  for (int rank : {2, 3}) write_store_shard(folder / "s", rank, {});  // an interrupted save of four ranks
  write_small_store(folder / "s", {{"step", 2}});
  check_and_read_all(folder / "s");
  EXPECT_EQ(TensorStore(folder / "s").state()["step"], 2);
  std::set<std::string> files;
  for (const auto& item : fs::directory_iterator(folder / "s")) files.insert(item.path().filename().string());
  EXPECT_EQ(files,
            (std::set<std::string>{
                "manifest.json", "shard-0.json", "shard-0.safetensors", "shard-1.json", "shard-1.safetensors"}));
  EXPECT_FALSE(fs::exists(folder / "s.tmp"));
}

TEST(TensorStore, ANewerSchemaIsNamedAsSuch) {
  const TempFolder folder;
  write_small_store(folder / "s");
  std::string text = read_file(folder / "s/manifest.json");
  const std::string now = "\"schema_version\":1";
  text.replace(text.find(now), now.size(), "\"schema_version\":2");
  write_file_atomically(folder / "s/manifest.json", text);
  EXPECT_TRUE(
      contains_text(message_of(ErrorKind::kCheckpoint, [&] { TensorStore store(folder / "s"); }), "newer version"));
}

TEST(TensorStore, TheManifestIsPlainJson) {
  const TempFolder folder;
  write_small_store(folder / "s");
  const Json manifest = Json::parse(read_file(folder / "s/manifest.json"));
  EXPECT_EQ(manifest["schema_version"], TensorStore::kSchemaVersion);
  EXPECT_EQ(manifest["shards"].size(), 2u);
  EXPECT_EQ(manifest["tensors"].size(), 6u);
  EXPECT_EQ(manifest["created"].get<std::string>().size(), std::string("2026-01-01T00:00:00Z").size());
}

TEST(TensorStore, EveryPartOfTheBytesIsVerifiedByExactlyOneRank) {
  const TempFolder folder;
  write_small_store(folder / "s");
  const std::string path = folder / "s/shard-1.safetensors";
  const std::string good = read_file(path);
  const auto begin = static_cast<size_t>(SafetensorsFile(path).header().data_begin);
  for (const int ranks : {1, 2, 3, 7, 100}) {
    for (size_t at = begin; at < good.size(); at += 97) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 1);
      write_bytes(path, bad);
      const TensorStore store(folder / "s");
      int found = 0;
      for (int r = 0; r < ranks; ++r) {
        try {
          store.verify(r, ranks);
        } catch (const Error& error) {
          EXPECT_TRUE(contains_text(error.what(), "shard-1.safetensors")) << error.what();
          ++found;
        }
      }
      EXPECT_EQ(found, 1) << "byte " << at << ", " << ranks << " ranks";
    }
  }
}

TEST(TensorStore, NoByteFallsBetweenTheRanksThatVerify) {
  const TempFolder folder;
  std::vector<StoredPiece> pieces;
  std::vector<StoredTensor> tensors;
  for (int i = 0; i < 13; ++i) {
    pieces.push_back({concat("t", i), {{0, 1}}, at::full({1}, i, at::kByte)});
    tensors.push_back({concat("t", i), at::kByte, {1}});
  }
  write_store_shard(folder / "s", 0, pieces);
  commit_store(folder / "s", 1, tensors, {});
  const std::string path = folder / "s/shard-0.safetensors";
  const std::string good = read_file(path);
  for (size_t at = good.size() - 13; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    write_bytes(path, bad);
    const TensorStore store(folder / "s");
    for (int ranks = 1; ranks <= 20; ++ranks) {
      int found = 0;
      for (int r = 0; r < ranks; ++r) {
        try {
          store.verify(r, ranks);
        } catch (const Error&) {
          ++found;
        }
      }
      EXPECT_EQ(found, 1) << "byte " << at << ", " << ranks << " ranks";
    }
  }
}

TEST(TensorStore, AHeaderThatSaysTheSameInOtherBytesIsDamageToo) {
  const TempFolder folder;
  int padded = 0;
  for (const char* name : {"a", "ab", "abc", "abcd"}) {
    write_store_shard(folder / name, 0, {{name, {{0, 2}}, at::zeros({2})}});
    commit_store(folder / name, 1, {{name, at::kFloat, {2}}}, {});
    const std::string path = folder / concat(name, "/shard-0.safetensors");
    std::string bytes = read_file(path);
    char& last = bytes[static_cast<size_t>(SafetensorsFile(path).header().data_begin) - 1];
    if (last != ' ') continue;
    ++padded;
    last = '\n';  // also white space
    write_bytes(path, bytes);
    SafetensorsFile still_valid(path);
    message_of(ErrorKind::kCheckpoint, [&] { TensorStore store(folder / name); });
  }
  EXPECT_GE(padded, 3);
}

// A length, JSON, names, dtypes, offsets: whatever the flipped bit makes of them, the checkpoint is said to be damaged.
TEST(TensorStore, ABitFlippedAnywhereInAHeaderIsAHeaderThatWasNotWritten) {
  const TempFolder folder;
  write_small_store(folder / "s", {});
  const std::string path = folder / "s/shard-0.safetensors", good = read_file(path);
  const auto header = static_cast<size_t>(SafetensorsFile(path).header().data_begin);
  for (size_t bit = 0; bit < 8 * header; ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ 1 << bit % 8);
    write_bytes(path, bad);
    const std::string said = message_of(ErrorKind::kCheckpoint, [&] { TensorStore store(folder / "s"); });
    EXPECT_NE(said.find("xxh3"), std::string::npos) << "bit " << bit << ": " << said;
    EXPECT_NE(said.find("use an earlier one"), std::string::npos) << "bit " << bit << ": " << said;
  }
}

// One flipped bit, a cut, an extension or a missing file, anywhere: found before any tensor is used.
TEST(TensorStore, NoDamageGoesUnseen) {
  const TempFolder folder;
  write_small_store(folder / "s", {{"step", 7}, {"config", std::string(300, 'x')}});
  check_and_read_all(folder / "s");
  std::vector<std::string> files;
  for (const auto& item : fs::directory_iterator(folder / "s")) files.push_back(item.path().string());
  std::sort(files.begin(), files.end());
  ASSERT_EQ(files.size(), 5u);
  Random random(8);
  int trials = 0;
  for (; trials < 2000; ++trials) {
    const std::string& file = files[below(random, 5)];
    const std::string good = read_file(file);
    std::string bad = good;
    const int64_t kind = below(random, 10);
    if (kind == 0) {
      bad.resize(below(random, static_cast<int64_t>(good.size())));
    } else if (kind == 1) {
      bad += static_cast<char>(random());
    } else {
      const int64_t bit = below(random, 8 * static_cast<int64_t>(good.size()));
      bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    }
    fs::remove(file);  // now and then it stays away
    if (trials % 50 != 0) write_bytes(file, bad);
    bool detected = false;
    try {
      const TensorStore store(folder / "s");
      store.verify(0, 2);
      store.verify(1, 2);
    } catch (const Error& error) {
      ASSERT_EQ(name(error.kind()), "checkpoint") << error.what();
      detected = true;
    }
    ASSERT_TRUE(detected) << "trial " << trials << ": " << file << ", kind " << kind;
    write_bytes(file, good);
  }
  check_and_read_all(folder / "s");
  std::cout << trials << " of " << trials << " damages detected\n";
}

// Someone who forges a store can also forge the hashes: what they say is then taken, but nothing is read out of bounds.
TEST(TensorStore, ForgedDescriptionsNeverCrash) {
  const TempFolder folder;
  write_small_store(folder / "s");
  const std::string manifest_path = folder / "s/manifest.json", index_path = folder / "s/shard-0.json";
  const Json manifest = Json::parse(read_file(manifest_path));
  const std::string index = read_file(index_path);
  Random random(9);
  const std::vector<std::string> words = {"0",
                                          "-1",
                                          "9223372036854775807",
                                          "18446744073709551615",
                                          "1.5",
                                          "[]",
                                          "{}",
                                          "null",
                                          ",",
                                          "\"",
                                          "[0,1,1,1]",
                                          "\"F64\"",
                                          "\"step\"",
                                          "99"};
  const auto mutate = [&](std::string text) {
    for (int64_t edits = below(random, 3); edits >= 0; --edits) {
      const int64_t at = below(random, static_cast<int64_t>(text.size()));
      const std::string& word = words[below(random, static_cast<int64_t>(words.size()))];
      if (below(random, 2) == 0) {
        text.replace(at, below(random, 4), word);
      } else {
        text[at] = static_cast<char>('0' + below(random, 10));
      }
    }
    return text;
  };
  int opened = 0;
  for (int trial = 0; trial < 4000; ++trial) {
    Json forged = manifest;
    forged.erase("xxh3");
    std::string forged_index = index;
    if (trial % 2 == 0) {
      forged_index = mutate(index);
    } else {
      forged = Json::parse(mutate(forged.dump()), nullptr, false);
      if (!forged.is_object() || forged.empty()) continue;
    }
    if (forged.contains("shards") && forged["shards"].is_array() && !forged["shards"].empty() &&
        forged["shards"][0].is_object()) {
      forged["shards"][0]["index_bytes"] = forged_index.size();
      forged["shards"][0]["index_xxh3"] = xxh3_text(forged_index);
    }
    write_bytes(index_path, forged_index);
    write_bytes(manifest_path, sealed_text(forged, manifest_path));
    try {
      check_and_read_all(folder / "s");
      ++opened;
    } catch (const Error& error) {
      ASSERT_EQ(name(error.kind()), "checkpoint") << error.what();
    }
  }
  EXPECT_GT(opened, 10);  // digits of `created` and the like
}

TEST(FileIo, WritesWholeFilesAndReportsWhatTheSystemSays) {
  const TempFolder folder;
  const std::string bytes("a\0b\n", 4);
  write_file_atomically(folder / "f", bytes);
  EXPECT_EQ(read_file(folder / "f"), bytes);
  write_file_atomically(folder / "f", "");
  EXPECT_EQ(read_file(folder / "f"), "");
  EXPECT_FALSE(fs::exists(folder / "f.tmp"));
  EXPECT_TRUE(contains_text(message_of(ErrorKind::kIo, [&] { read_file(folder / "none"); }), "No such file"));
  EXPECT_TRUE(contains_text(message_of(ErrorKind::kIo, [&] { read_file(folder.path()); }), "directory"));
  message_of(ErrorKind::kIo, [&] { write_file_atomically(folder / "none/f", "x"); });
  message_of(ErrorKind::kIo, [&] { sync_path(folder / "none"); });
  sync_path(folder / "f");
  sync_path(folder.path());
  fs::create_directory(folder / "taken");
  message_of(ErrorKind::kIo, [&] { write_file_atomically(folder / "taken", "x"); });
  EXPECT_FALSE(fs::exists(folder / "taken.tmp"));
}

}  // namespace
}  // namespace hanok
