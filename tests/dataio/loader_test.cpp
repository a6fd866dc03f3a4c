#include "dataio/loader.h"

#include <chrono>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "base/error.h"
#include "tests/dataio/pack_fixture.h"

namespace hanok {
namespace {

constexpr int64_t kSeqLen = 400;

class LoaderTest : public PackFixture {
 protected:
  void pack_rows(int rows) {
    write_csv(rows);
    dataset_ = std::make_shared<const Dataset>(pack_csv().file);
  }
  std::shared_ptr<const Sampler> sampler(int64_t rows_per_step) {
    return std::make_shared<const Sampler>(
        std::vector<Sampler::Source>{usable_samples(*dataset_, 1, kSeqLen).source}, kSeqLen, rows_per_step, 64, 5);
  }
  LoaderOptions options(int64_t rows_per_micro_batch, int64_t threads) {
    return {.batch = {.seq_len = kSeqLen,
                      .rows_per_micro_batch = rows_per_micro_batch,
                      .pad_multiple = 2,
                      .vision = small_encoder().vision},
            .reader_threads = threads};
  }
  std::unique_ptr<Loader> loader(
      int64_t rows_per_step, int64_t rows_per_micro_batch, Slice slice, int64_t threads = 1, Cursor start = {}) {
    return std::make_unique<Loader>(
        Datasets{dataset_}, sampler(rows_per_step), options(rows_per_micro_batch, threads), slice, start);
  }
  std::shared_ptr<const Dataset> dataset_;
};

std::vector<std::string> ids_of(const std::vector<Batch>& batches) {
  std::vector<std::string> ids;
  for (const Batch& batch : batches) {
    for (const PlacedSample& sample : batch.samples) ids.push_back(sample.id);
  }
  return ids;
}

void expect_equal(const std::vector<Batch>& a, const std::vector<Batch>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(at::equal(a[i].tokens_T, b[i].tokens_T));
    EXPECT_TRUE(at::equal(a[i].pixels_PC, b[i].pixels_PC));
    EXPECT_TRUE(at::equal(a[i].position_3T, b[i].position_3T));
    EXPECT_EQ(a[i].weight_sum, b[i].weight_sum);
  }
}

TEST_F(LoaderTest, ShowsTheSameStepWhateverTheRanks) {
  pack_rows(150);
  for (int64_t rows_per_micro_batch : {1, 2}) {
    const auto whole = loader(5, rows_per_micro_batch, {0, 1});
    std::vector<std::vector<std::unique_ptr<Loader>>> worlds;
    for (int count : {2, 3, 8}) {
      auto& ranks = worlds.emplace_back();
      for (int index = 0; index < count; ++index) ranks.push_back(loader(5, rows_per_micro_batch, {index, count}));
    }
    for (int step = 0; step < 4; ++step) {
      const std::vector<std::string> expected = ids_of(whole->next_step());
      for (auto& ranks : worlds) {
        std::vector<std::string> together;
        std::set<size_t> num_micro_batches;
        for (auto& rank : ranks) {
          const std::vector<Batch> batches = rank->next_step();
          num_micro_batches.insert(batches.size());
          for (const std::string& id : ids_of(batches)) together.push_back(id);
          EXPECT_EQ(rank->cursor(), whole->cursor());
        }
        EXPECT_EQ(together, expected);
        EXPECT_EQ(num_micro_batches.size(), 1u);
      }
    }
  }
}

TEST_F(LoaderTest, DoesNotDependOnTheNumberOfThreads) {
  pack_rows(120);
  const auto one = loader(4, 2, {0, 1}, 1), many = loader(4, 2, {0, 1}, 6);
  for (int step = 0; step < 10; ++step) expect_equal(one->next_step(), many->next_step());
}

TEST_F(LoaderTest, GoesOnFromACursor) {
  pack_rows(120);
  const auto walking = loader(4, 2, {0, 1}, 2);
  for (int step = 0; step < 7; ++step) walking->next_step();
  const Cursor cursor = walking->cursor();
  EXPECT_EQ(cursor.step, 7);
  EXPECT_EQ(sampler(4)->at_step(7), cursor);
  const auto resumed = loader(4, 2, {0, 1}, 2, cursor);
  for (int step = 0; step < 3; ++step) expect_equal(walking->next_step(), resumed->next_step());
}

TEST_F(LoaderTest, PadsARankWithFewerRowsToTheSameNumberOfMicroBatches) {
  pack_rows(100);
  const auto poor = loader(3, 1, {0, 4}), rich = loader(3, 1, {3, 4});
  const std::vector<Batch> none = poor->next_step(), some = rich->next_step();
  ASSERT_EQ(none.size(), 1u);
  ASSERT_EQ(some.size(), 1u);
  EXPECT_EQ(none[0].num_tokens, 0);
  EXPECT_EQ(none[0].tokens_T.size(0), 2);
  EXPECT_EQ(none[0].weight_sum, 0);
  EXPECT_GT(some[0].num_tokens, 0);
}

TEST_F(LoaderTest, RethrowsWhatAReaderMetWithTheSampleNamed) {
  pack_rows(30);
  const std::string file = dataset_->file();
  std::string bytes = bytes_of(file);
  const Sample victim = dataset_->read(17);
  const auto& frame = victim.vision[0].frames[0];
  const size_t at = bytes.find(std::string(frame.begin(), frame.end()));
  ASSERT_NE(at, std::string::npos);
  bytes[at + frame.size() / 2] ^= 1;
  std::ofstream(file, std::ios::binary) << bytes;
  dataset_ = std::make_shared<const Dataset>(file);
  for (int64_t threads : {1, 4}) {
    const auto loader_ = loader(2, 1, {0, 1}, threads);
    const std::string message = failure_of([&] {
      for (int step = 0; step < 20; ++step) loader_->next_step();
    });
    EXPECT_NE(message.find("packed sample 17"), std::string::npos) << message;
    EXPECT_NE(message.find(file), std::string::npos) << message;
    EXPECT_EQ(failure_of([&] { loader_->next_step(); }), message);
  }
}

TEST_F(LoaderTest, EndsAtOnceInAnyState) {
  pack_rows(60);
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 40; ++i) {
    const auto ahead = loader(4, 1, {0, 1}, 1 + i % 4);
    for (int step = 0; step < i % 3; ++step) ahead->next_step();
    if (i % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST_F(LoaderTest, SaysHowLongItWasWaitedFor) {
  pack_rows(60);
  const auto waiting = loader(4, 1, {0, 1});
  waiting->next_step();
  EXPECT_GT(waiting->waited_s(), 0);
  EXPECT_EQ(waiting->waited_s(), 0);
}

TEST_F(LoaderTest, LeavesOutWhatIsTooLongOrHasNoLabels) {
  std::string jsonl;
  for (int i = 0; i < 6; ++i) {
    std::string text;
    for (int w = 0; w < (i < 4 ? 300 : 3); ++w) text += "word ";
    jsonl += R"({"id": "n)" + std::to_string(i) + R"(", "messages": [{"role": "user", "content": ")" + text + R"("})";
    jsonl += i == 5 ? "]}\n"
                    : R"(, {"role": "assistant", "content": "yes"}]})"
                      "\n";
  }
  write("data.jsonl", jsonl);
  const Dataset dataset(pack({.path = folder_ / "data.jsonl"}).file);
  ::testing::internal::CaptureStderr();
  const UsableSamples usable = usable_samples(dataset, 2, 200);
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(usable.source.indices, std::vector<int64_t>{4});
  EXPECT_EQ(usable.source.share, 2);
  EXPECT_EQ(usable.left_out.by_reason, (std::map<std::string, int64_t>{{"too_long", 4}, {"no_labels", 1}}));
  EXPECT_NE(log.find("left out 5 of 6 samples (no_labels: 1, too_long: 4) at seq_len = 200"), std::string::npos) << log;
  EXPECT_NE(log.find("n0: 312 tokens, n1: 312 tokens, n2: 312 tokens]"), std::string::npos) << log;
  ::testing::internal::CaptureStderr();
  usable_samples(dataset, 1, 400);
  const std::string unanswered = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(unanswered.find("n5: it does not end with an answer"), std::string::npos) << unanswered;
  const std::string message = failure_of([&] { usable_samples(dataset, 1, 5); });
  EXPECT_NE(message.find("got no sample to learn from among 6"), std::string::npos) << message;
}

TEST_F(LoaderTest, EvaluatesEverySampleOnceInOrder) {
  pack_rows(40);
  const int64_t longest = dataset_->num_tokens(3);
  for (int64_t seq_len : {longest - 1, int64_t{400}, int64_t{100000}}) {
    int64_t next = 0;
    for (const Row& row : evaluation_rows(*dataset_, 2, seq_len)) {
      int64_t length = 0;
      for (const SampleRef& ref : row) {
        EXPECT_EQ(ref, (SampleRef{2, next++}));
        length += dataset_->num_tokens(ref.index);
      }
      EXPECT_TRUE(length <= seq_len || row.size() == 1);
    }
    EXPECT_EQ(next, 40);
  }
}

TEST_F(LoaderTest, ReadsGivenRowsWithAChange) {
  pack_rows(20);
  std::vector<std::vector<Row>> batches;
  for (const Row& row : evaluation_rows(*dataset_, 0, kSeqLen)) batches.push_back({row});
  const size_t num_batches = batches.size();
  RowReader reader({dataset_}, batches, options(1, 3), [](const SampleRef& ref, Sample sample) {
    sample.id += ":" + std::to_string(ref.index);
    return sample;
  });
  size_t count = 0;
  int64_t next = 0;
  for (; const std::optional<Batch> batch = reader.next(); ++count) {
    for (const PlacedSample& sample : batch->samples) {
      EXPECT_EQ(sample.id, std::to_string(100 + next) + ":" + std::to_string(next));
      ++next;
    }
  }
  EXPECT_EQ(count, num_batches);
  EXPECT_EQ(next, 20);
  EXPECT_FALSE(reader.next().has_value());
}

TEST_F(LoaderTest, FillsRowsOfGsm8kTo98Percent) {
  std::istringstream lines(bytes_of(HANOK_SOURCE_DIR "/tests/data/gsm8k/train.jsonl"));
  std::string jsonl;
  for (std::string line; std::getline(lines, line);) {
    const auto problem = nlohmann::json::parse(line);
    const nlohmann::json record = {{"messages",
                                    {{{"role", "user"}, {"content", problem["question"]}},
                                     {{"role", "assistant"}, {"content", problem["answer"]}}}}};
    jsonl += record.dump() + "\n";
  }
  write("gsm8k.jsonl", jsonl);
  const Dataset dataset(pack({.path = folder_ / "gsm8k.jsonl"}).file);
  const UsableSamples usable = usable_samples(dataset, 1, 2048);
  const Sampler sampler({usable.source}, 2048, 8, DataConfig{}.pack_window, 1);
  const int64_t num_steps = sampler.steps_for_epochs(3);
  Cursor cursor;
  int64_t num_tokens = 0;
  for (int64_t step = 0; step < num_steps; ++step) {
    for (const Row& row : sampler.next(cursor)) {
      for (const SampleRef& ref : row) num_tokens += dataset.num_tokens(ref.index);
    }
  }
  const double fill = static_cast<double>(num_tokens) / static_cast<double>(num_steps * 8 * 2048);
  std::cout << "GSM8K: " << dataset.size() << " samples, " << num_steps << " steps of 8 rows, fill " << fill << "\n";
  EXPECT_GE(fill, 0.98);
}

}  // namespace
}  // namespace hanok
