#include "trainer/data.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <mutex>
#include <set>

#include "base/error.h"
#include "dataio/tensor_store.h"
#include "tests/dataio/temp_folder.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;

const std::string kTokenizer = HANOK_SOURCE_DIR "/tests/data/qwen3_vl_tokenizer";

/// Chat samples with questions of `words` words.
void write_chats(const std::string& file, int count, int words) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    std::string question = concat("question ", i);
    for (int word = 0; word < words; ++word) question += " and";
    text += concat(R"({"id": "s)",
                   i,
                   R"(", "messages": [{"role": "user", "content": ")",
                   question,
                   R"("}, {"role": "assistant", "content": "the answer is )",
                   i,
                   "\"}]}\n");
  }
  write_file_atomically(file, text);
}

class Data : public testing::Test {
 protected:
  Data() {
    config.model.tokenizer = kTokenizer;
    config.data.chat_template = "qwen3_vl";
    config.data.cache = temp / "packs";
    for (const auto& [name, count, words] :
         {std::tuple("a", 40, 5), std::tuple("b", 20, 30), std::tuple("held", 10, 5)}) {
      write_chats(temp / std::string(name) + ".jsonl", count, words);
      config.data.sets[name].path = temp / std::string(name) + ".jsonl";
    }
    config.eval.set = "held";
    config.stages.resize(1);
    config.stages[0].seq_len = 256;
    config.stages[0].rows_per_step = 2;
    config.stages[0].steps = 5;
  }
  StageData stage_data(const Groups& groups) {
    encoder = make_encoder(config);
    return make_stage_data(config, config.stages[0], open_datasets(config, encoder, groups), encoder.vision, groups);
  }
  StageData stage_data() { return stage_data(make_single_groups()); }

  TempFolder temp;
  RunConfig config;
  SampleEncoder encoder;
};

TEST_F(Data, TemplateIsTheTokenizersElseTheModels) {
  EXPECT_EQ(make_encoder(config).chat->name(), "qwen3_vl");
  config.data.chat_template = "";
  EXPECT_EQ(error_of([&] { make_encoder(config); }).kind(), ErrorKind::kData) << "no folder has a template";
  config.model.path = temp / "model";
  fs::create_directories(config.model.path);
  write_file_atomically(config.model.path + "/chat_template.jinja", jinja_of("qwen3_vl_thinking"));
  EXPECT_EQ(make_encoder(config).chat->name(), "qwen3_vl_thinking");
  const std::string own = temp / "tokenizer";
  fs::copy(kTokenizer, own);
  config.model.tokenizer = own;
  write_file_atomically(own + "/chat_template.jinja", jinja_of("qwen3_vl"));
  EXPECT_EQ(make_encoder(config).chat->name(), "qwen3_vl");
  config.data.chat_template = "qwen3_vl_thinking";
  EXPECT_EQ(make_encoder(config).chat->name(), "qwen3_vl_thinking");
}

TEST_F(Data, PictureRulesComeFromTheModelFolderThenTheConfig) {
  config.model.tower.patch = 8;
  config.model.connector.merge = 3;
  EXPECT_EQ(vision_prep_of(config).patch, 8);
  EXPECT_EQ(vision_prep_of(config).merge, 3);
  EXPECT_EQ(vision_prep_of(config).min_pixels, VisionPrep{}.min_pixels);
  config.model.path = temp / "model";
  fs::create_directories(config.model.path);
  write_file_atomically(config.model.path + "/preprocessor_config.json",
                        R"({"size": {"shortest_edge": 1024, "longest_edge": 4096}, "patch_size": 8, "merge_size": 3,
                            "temporal_patch_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
                            "image_processor_type": "Qwen2VLImageProcessorFast"})");
  EXPECT_EQ(make_encoder(config).vision.min_pixels, 1024);
  EXPECT_EQ(make_encoder(config).vision.max_pixels, 4096);
  config.data.max_pixels = 2048;
  EXPECT_EQ(make_encoder(config).vision.max_pixels, 2048);
  config.data.min_pixels = 3000;
  EXPECT_ERROR(error_of([&] { make_encoder(config); }), ErrorKind::kConfig, "got 3000 and 2048");
}

TEST_F(Data, MissingTokenizerSaysWhatToGive) {
  config.model.tokenizer = "";
  EXPECT_ERROR(error_of([&] { make_encoder(config); }), ErrorKind::kConfig, "model.tokenizer: got none");
}

TEST_F(Data, OnlyUsedSetsArePackedOnceForAllRanks) {
  config.stages[0].mixture = {{"a", 1}};
  std::mutex mutex;
  std::set<std::string> files;
  run_on_threads(3, [&](World& world) {
    const Groups groups = make_groups(world, Mesh(MeshShape{.dp = 3}), false);
    const auto datasets = open_datasets(config, make_encoder(config), groups);
    ASSERT_EQ(datasets.size(), 2u);
    EXPECT_EQ(datasets.at("a")->size(), 40);
    EXPECT_EQ(datasets.at("held")->size(), 10);
    const std::lock_guard lock(mutex);
    files.insert(datasets.at("a")->file());
  });
  EXPECT_EQ(files.size(), 1u);
  int packed = 0;
  for (const auto& entry : fs::recursive_directory_iterator(temp / "packs"))
    packed += entry.path().extension() == ".h5";
  EXPECT_EQ(packed, 2);
}

TEST_F(Data, EveryRankHearsOfDataThatCannotBePacked) {
  config.data.sets["b"].path = temp / "absent.jsonl";
  std::atomic<int> heard{0};
  run_on_threads(3, [&](World& world) {
    const Groups groups = make_groups(world, Mesh(MeshShape{.dp = 3}), false);
    const Error error = error_of([&] { open_datasets(config, make_encoder(config), groups); });
    heard += std::string(error.what()).find("absent.jsonl") != std::string::npos;
  });
  EXPECT_EQ(heard, 3);
}

TEST_F(Data, EmptyMixtureIsEverySetButTheHeldOutOneBySize) {
  EXPECT_EQ(mixture_of(config, config.stages[0]), (std::vector<std::string>{"a", "b"}));
  const StageData data = stage_data();
  ASSERT_EQ(data.datasets.size(), 2u);
  EXPECT_EQ(data.datasets[1]->size(), 20);
  // One pass over all samples takes each of them once.
  config.stages[0].steps = 0;
  config.stages[0].epochs = 1;
  config.data.pack_window = 1000;
  const StageData whole = stage_data();
  std::multiset<std::pair<int, int64_t>> seen;
  Cursor cursor;
  while (cursor.window == 0)
    for (const Row& row : whole.sampler->next(cursor))
      for (const SampleRef& ref : row) seen.insert({ref.dataset, ref.index});
  for (const auto& ref : seen) EXPECT_LE(seen.count(ref), 2u);
  EXPECT_GE(std::set(seen.begin(), seen.end()).size(), 59u);

  config.data.sets = {{"held", config.data.sets["held"]}};
  EXPECT_ERROR(error_of([&] { mixture_of(config, config.stages[0]); }), ErrorKind::kConfig, "got only eval.set = held");
  config.stages[0].mixture = {{"held", 1}};
  EXPECT_EQ(mixture_of(config, config.stages[0]), std::vector<std::string>{"held"});
}

TEST_F(Data, LengthComesFromStepsEpochsOrTokens) {
  EXPECT_EQ(stage_data().num_steps, 5);
  config.stages[0].steps = 0;
  config.stages[0].epochs = 3;
  const StageData epochs = stage_data();
  double all = 0;
  for (const auto& dataset : epochs.datasets)
    for (int64_t i = 0; i < dataset->size(); ++i) all += static_cast<double>(dataset->num_tokens(i));
  // Rows are at most full, so three passes need at least this many steps.
  EXPECT_GE(static_cast<double>(epochs.num_steps), std::floor(3 * all / (2 * 256)));
  config.stages[0].epochs = 0;
  config.stages[0].tokens = 3 * all;
  const StageData tokens = stage_data();
  EXPECT_NEAR(static_cast<double>(tokens.num_steps), static_cast<double>(epochs.num_steps), 1);
  config.stages[0].tokens = 1;
  EXPECT_EQ(stage_data().num_steps, 1);
}

TEST_F(Data, TooLongSamplesAreLeftOut) {
  config.stages[0].mixture = {{"a", 1}, {"b", 1}};
  config.stages[0].seq_len = 40;  // the questions of b do not fit
  EXPECT_ERROR(error_of([&] { stage_data(); }), ErrorKind::kData, "raise seq_len");
  config.stages[0].mixture = {{"a", 1}};
  EXPECT_NO_THROW(stage_data());
}

TEST_F(Data, BatchesFollowStageAndLayout) {
  config.stages[0].weight = "sample";
  config.stages[0].sample = "turn";
  config.stages[0].rows_per_micro_batch = 2;
  config.data.reader_threads = 3;
  run_on_threads(2, [&](World& world) {
    for (const bool sequence : {false, true}) {
      const Groups groups = make_groups(world, Mesh(MeshShape{.tp = 2}), sequence);
      const SampleEncoder own = make_encoder(config);
      const StageData data =
          make_stage_data(config, config.stages[0], open_datasets(config, own, groups), own.vision, groups);
      EXPECT_EQ(data.options.batch.pad_multiple, sequence ? 2 : 1);
      EXPECT_EQ(data.options.batch.weight, TokenWeight::kSample);
      EXPECT_EQ(data.options.batch.unit, WeightUnit::kTurn);
      EXPECT_EQ(data.options.batch.seq_len, 256);
      EXPECT_EQ(data.options.batch.rows_per_micro_batch, 2);
      EXPECT_EQ(data.options.reader_threads, 3);
    }
  });
}

TEST_F(Data, StagesSeeDifferentOrders) {
  const StageData first = stage_data();
  config.stages[0].name = "second";
  const StageData second = stage_data();
  Cursor a, b;
  EXPECT_NE(first.sampler->next(a), second.sampler->next(b));
}

}  // namespace
}  // namespace hanok
