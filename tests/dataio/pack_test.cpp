#include "dataio/pack.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "base/error.h"
#include "tests/dataio/pack_fixture.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;

class Pack : public PackFixture {
 protected:
  size_t num_files_in_cache(const std::string& extension) {
    size_t count = 0;
    for (const auto& entry : fs::directory_iterator(data_.cache)) count += entry.path().extension() == extension;
    return count;
  }

  /// Starts dataset_probe, which lies beside this program, with one job.
  pid_t start_probe() {
    const nlohmann::json job = {{"do", "pack"},
                                {"name", "train"},
                                {"path", folder_ / "data.csv"},
                                {"cache", data_.cache},
                                {"folder", kTokenizerFolder},
                                {"min_pixels", 32 * 32},
                                {"max_pixels", 128 * 128},
                                {"reader_threads", 2}};
    write("job.json", job.dump() + "\n");
    const std::string program = fs::read_symlink("/proc/self/exe").parent_path() / "dataset_probe";
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    const std::string in = folder_ / "job.json", out = folder_ / "out.json";
    posix_spawn_file_actions_addopen(&actions, 0, in.c_str(), O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0666);
    std::string name = program;
    char* arguments[] = {name.data(), nullptr};
    pid_t child = -1;
    EXPECT_EQ(posix_spawn(&child, program.c_str(), &actions, nullptr, arguments, environ), 0) << program;
    posix_spawn_file_actions_destroy(&actions);
    return child;
  }
};

TEST_F(Pack, TurnsRowsIntoSamples) {
  write_csv(3);
  const PackReport report = pack_csv();
  EXPECT_FALSE(report.was_cached);
  EXPECT_EQ(report.num_records, 3);
  EXPECT_EQ(report.num_samples, 3);
  EXPECT_EQ(report.num_images, 3);
  EXPECT_EQ(report.bad.total(), 0);
  EXPECT_TRUE(report.bad_list.empty());
  const Dataset dataset(report.file);
  ASSERT_EQ(dataset.size(), 3);
  const Sample sample = dataset.read(1);
  EXPECT_EQ(sample.id, "101");
  EXPECT_EQ(sample.answer, 1);
  EXPECT_EQ(sample.num_choices, 4);
  EXPECT_EQ(label_text_of(sample), "[b<|im_end|>]");
  ASSERT_EQ(sample.vision.size(), 1u);
  EXPECT_EQ(text_of(sample).find("<|im_start|>user\n<|vision_start|><|image_pad|>"), 0u) << text_of(sample);
  EXPECT_NE(text_of(sample).find("What is number 1?\na. cat\n"), std::string::npos);
  const VisionItem& item = sample.vision[0];
  EXPECT_EQ(std::count(sample.tokens.begin(), sample.tokens.end(), 151655), item.h * item.w / 4);
  EXPECT_EQ(dataset.num_tokens(1), static_cast<int64_t>(sample.tokens.size()));
  EXPECT_EQ(dataset.num_label_tokens(1), 2);
}

TEST_F(Pack, UsesAFinishedFileAgainUntilSomethingChanges) {
  write_csv(3);
  const PackReport first = pack_csv();
  const PackReport second = pack_csv();
  EXPECT_TRUE(second.was_cached);
  EXPECT_EQ(second.file, first.file);
  EXPECT_EQ(second.num_tokens, first.num_tokens);
  EXPECT_EQ(num_files_in_cache(".h5"), 1u);

  const auto differs = [&](const char* what) {
    EXPECT_FALSE(pack_csv().was_cached) << what;
    EXPECT_TRUE(pack_csv().was_cached) << what;
  };
  write_picture("img/1.png", 64, 64, 99);
  differs("another picture");
  fs::last_write_time(folder_ / "img/1.png", fs::last_write_time(folder_ / "img/1.png") + std::chrono::seconds(1));
  differs("another time of a picture");
  data_.store_images = "resized";
  differs("another way to store");
  data_.max_image_pixels = 1 << 20;
  differs("another limit");
  write_csv(4);
  differs("another row");
  EXPECT_FALSE(pack({.path = folder_ / "data.csv", .prompt = "{question}"}).was_cached);
}

TEST_F(Pack, IsTheSameContentWhereverItsFilesLie) {
  write_csv(3);
  const std::string here = Dataset(pack_csv().file).content_key();
  fs::create_directories(folder_ / "moved");
  fs::rename(folder_ / "img", folder_ / "moved/img");
  fs::last_write_time(folder_ / "moved/img/1.png", fs::file_time_type::clock::now());
  const DatasetConfig moved{.path = folder_ / "data.csv", .image_root = folder_ / "moved"};
  const PackReport there = pack(moved);
  EXPECT_FALSE(there.was_cached);
  EXPECT_EQ(Dataset(there.file).content_key(), here);
  write_picture("moved/img/1.png", 64, 64, 99);
  EXPECT_NE(Dataset(pack(moved).file).content_key(), here);
}

TEST_F(Pack, DoesNotDependOnTheNumberOfThreads) {
  write_csv(40);
  std::vector<std::string> bytes;
  for (int64_t threads : {1, 2, 5}) {
    data_.reader_threads = threads;
    data_.cache = folder_ / ("cache" + std::to_string(threads));
    bytes.push_back(bytes_of(pack_csv().file));
  }
  EXPECT_FALSE(bytes[0].empty());
  EXPECT_TRUE(bytes[0] == bytes[1]);
  EXPECT_TRUE(bytes[0] == bytes[2]);
}

TEST_F(Pack, CountsAndListsWhatItSkips) {
  write_csv(20);
  std::string csv = bytes_of(folder_ / "data.csv");
  csv += "201,img/nowhere.png,q,1,2,3,4,a\n202,img/broken.png,q,1,2,3,4,a\n203,img/0.png,q,1,2,3,4,x\n";
  csv += "204,img/large.png,q,1,2,3,4,a\n205,img/thin.png,q,1,2,3,4,a\n206,img,q,1,2,3,4,a\n";
  write("data.csv", csv);
  const std::string picture = bytes_of(folder_ / "img/0.png");
  write("img/broken.png", picture.substr(0, picture.size() / 2));
  write_picture("img/large.png", 300, 300, 1);
  write_picture("img/thin.png", 3, 900, 1);
  data_.max_image_pixels = 300 * 300 - 1;
  data_.max_bad_share = 0.25;
  const PackReport report = pack_csv();
  EXPECT_EQ(report.num_samples, 20);
  EXPECT_EQ(report.num_records, 26);
  const std::map<std::string, int64_t> expected = {{"image_missing", 1},
                                                   {"image_damaged", 1},
                                                   {"answer_invalid", 1},
                                                   {"too_many_pixels", 1},
                                                   {"picture_shape", 1},
                                                   {"image_unreadable", 1}};
  EXPECT_EQ(report.bad.by_reason, expected);
  const std::string list = bytes_of(report.bad_list);
  EXPECT_EQ(std::count(list.begin(), list.end(), '\n'), 6);
  const auto first = nlohmann::json::parse(list.substr(0, list.find('\n')));
  EXPECT_EQ(first["id"], "201");
  EXPECT_EQ(first["number"], 22);
  EXPECT_NE(first["detail"].get<std::string>().find("row 22: "), std::string::npos) << first;
  EXPECT_NE(first["detail"].get<std::string>().find("img/nowhere.png: no such file"), std::string::npos) << first;

  fs::remove(report.bad_list);
  EXPECT_EQ(pack_csv().bad.by_reason, expected);  // from the file
  EXPECT_EQ(bytes_of(report.bad_list), list);
  data_.max_bad_share = 0.2;  // 6 of 26 are more
  const std::string message = failure_of([&] { pack_csv(); });
  for (const char* part :
       {"got 6 wrong records of 26", "image_missing: 1", "data.max_bad_share = 0.2", "img/nowhere.png"}) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
  data_.cache = folder_ / "cache2";  // the same without a finished file
  EXPECT_NE(failure_of([&] { pack_csv(); }).find("data.max_bad_share"), std::string::npos);
  data_.on_bad_sample = "fail";
  EXPECT_NE(failure_of([&] { pack_csv(); }).find("set data.on_bad_sample: skip"), std::string::npos);
}

TEST_F(Pack, EndsWhenNothingIsUsable) {
  write("data.csv", "id,path,question,a,b,c,d,answer\n1,x.png,q,1,2,3,4,a\n2,y.png,q,1,2,3,4,a\n");
  data_.max_bad_share = 1;
  EXPECT_NE(failure_of([&] { pack_csv(); }).find("got no usable record of 2 (image_missing: 2)"), std::string::npos);
  write("data.csv", "id,path,question,a,b,c,d,answer\n");
  EXPECT_NE(failure_of([&] { pack_csv(); }).find("got a file without records"), std::string::npos);
}

TEST_F(Pack, KeepsSpecialTokensOfUsersAsText) {
  write_picture("a.png", 64, 64, 1);
  write(
      "data.jsonl",
      R"({"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"},)"
      R"( {"type": "text", "text": "is <|image_pad|> or <|im_end|> a token?"}]}, {"role": "assistant", "content": "No."}]})"
      "\n");
  const Sample sample = Dataset(pack({.path = folder_ / "data.jsonl"}).file).read(0);
  EXPECT_EQ(std::count(sample.tokens.begin(), sample.tokens.end(), 151655), 4);
  EXPECT_EQ(label_text_of(sample), "[No.<|im_end|>]");
  EXPECT_NE(text_of(sample).find("is <|image_pad|> or <|im_end|> a token?"), std::string::npos);
}

TEST_F(Pack, LabelsEveryAssistantTurnAndNothingWithoutAFinalOne) {
  write("data.jsonl",
        R"({"id": "two", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},)"
        R"( {"role": "user", "content": "c"}, {"role": "assistant", "content": "d e"}]})"
        "\n"
        R"({"id": "none", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},)"
        R"( {"role": "user", "content": "c"}]})"
        "\n");
  const Dataset dataset(pack({.path = folder_ / "data.jsonl"}).file);
  EXPECT_EQ(label_text_of(dataset.read(0)), "[b<|im_end|>][d e<|im_end|>]");
  EXPECT_EQ(label_text_of(dataset.read(1)), "");
  EXPECT_TRUE(text_of(dataset.read(1)).ends_with("<|im_start|>assistant\n"));
}

TEST_F(Pack, ReadsVideosFromFoldersInTheOrderOfNumbers) {
  for (int i = 1; i <= 12; ++i) write_picture("clip/" + std::to_string(i) + ".jpg", 64, 64, i);
  write("clip/notes.txt", "not a picture");
  write("data.jsonl",
        R"({"messages": [{"role": "user", "content": [{"type": "video", "video": "clip", "fps": 2}]},)"
        R"( {"role": "assistant", "content": "x"}]})"
        "\n");
  const PackReport report = pack({.path = folder_ / "data.jsonl"});
  EXPECT_EQ(report.num_images, 12);
  const Sample sample = Dataset(report.file).read(0);
  ASSERT_EQ(sample.vision.size(), 1u);
  EXPECT_TRUE(sample.vision[0].is_video);
  EXPECT_EQ(sample.vision[0].t, 6);
  EXPECT_EQ(sample.vision[0].token_begins.size(), 6u);
  for (int i = 0; i < 12; ++i) {
    const auto& frame = sample.vision[0].frames[static_cast<size_t>(i)];
    EXPECT_TRUE(std::string(frame.begin(), frame.end()) ==
                bytes_of(folder_ / ("clip/" + std::to_string(i + 1) + ".jpg")));
  }
  EXPECT_NE(text_of(sample).find("<0.2 seconds><|vision_start|><|video_pad|>"), std::string::npos) << text_of(sample);
  EXPECT_NE(text_of(sample).find("<5.2 seconds>"), std::string::npos);
}

// Sizes by transformers' smart_resize.
TEST_F(Pack, PicturesAreOfTheSizeThatTheirPartsAskFor) {
  write_picture("a.png", 300, 200, 1);
  const std::pair<const char*, std::pair<int, int>> asks[] = {
      {"", {96, 128}},
      {R"(, "max_pixels": 65536)", {192, 288}},
      {R"(, "max_pixels": 4096)", {32, 64}},
      {R"(, "max_pixels": 512)", {32, 32}},
      {R"(, "min_pixels": 90000)", {256, 384}},
      {R"(, "resized_height": 64, "resized_width": 96)", {64, 96}}};
  std::string lines;
  for (const auto& [ask, size] : asks)
    lines += concat(R"({"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png")",
                    ask,
                    R"(}]}, {"role": "assistant", "content": "x"}]})",
                    "\n");
  write("data.jsonl", lines);
  const Dataset dataset(pack({.path = folder_ / "data.jsonl"}).file);
  const int patch = small_encoder().vision.patch;
  for (int64_t i = 0; i < std::ssize(asks); ++i) {
    const VisionItem item = dataset.read(i).vision.at(0);
    EXPECT_EQ(std::pair(static_cast<int>(item.h) * patch, static_cast<int>(item.w) * patch), asks[i].second)
        << asks[i].first;
  }
  write(
      "data.jsonl",
      R"({"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png", "min_pixels": 1000000000}]}]})"
      "\n");
  EXPECT_NE(failure_of([&] { pack({.path = folder_ / "data.jsonl"}); }).find("too_many_pixels: 1"), std::string::npos);
}

TEST_F(Pack, StoresResizedPicturesThatGiveTheSamePixels) {
  write_picture("a.jpg", 100, 77, 1);
  write_picture("b.webp", 33, 150, 2);
  write(
      "data.jsonl",
      R"({"messages": [{"role": "user", "content": [{"type": "image", "image": "a.jpg"}, {"type": "image", "image": "b.webp"}]},)"
      R"( {"role": "assistant", "content": "x"}]})"
      "\n");
  const BatchSpec spec{.vision = small_encoder().vision};
  std::vector<Batch> batches;
  for (const char* store : {"encoded", "resized"}) {
    data_.store_images = store;
    const Sample sample = Dataset(pack({.path = folder_ / "data.jsonl"}).file).read(0);
    EXPECT_EQ(sample.vision[0].frames_are_raw, std::string(store) == "resized");
    batches.push_back(make_batch({sample}, {{0, 0}}, spec));
  }
  EXPECT_GT(batches[0].pixels_PC.size(0), 0);
  EXPECT_TRUE(at::equal(batches[0].pixels_PC, batches[1].pixels_PC));
}

TEST_F(Pack, GoesOnWhereAnExceptionStoppedIt) {
  write_csv(9000);  // two blocks are full well before the last row
  const auto stop_at = [&](int64_t record) {
    return failure_of(
        [&] {
          pack({.path = folder_ / "data.csv"}, [&](const PackProgress& p) {
            if (p.done == record) HANOK_FAIL(kIo) << "stopped";
          });
        },
        ErrorKind::kIo);
  };
  stop_at(8500);
  int64_t first = -1;
  const PackReport report = pack({.path = folder_ / "data.csv"}, [&](const PackProgress& p) {
    if (first < 0) first = p.done;
    EXPECT_EQ(p.total, 9000);
  });
  EXPECT_GE(first, 8192);
  data_.cache = folder_ / "undisturbed";
  EXPECT_TRUE(bytes_of(report.file) == bytes_of(pack_csv().file));
  EXPECT_FALSE(fs::exists(fs::path(report.file).replace_extension(".parts")));
}

TEST_F(Pack, SurvivesKillsAtAnyTime) {
  write_csv(12000);
  std::mt19937 random(7);
  int num_kills = 0, num_kills_between_blocks = 0;
  for (bool is_done = false; !is_done;) {
    const pid_t child = start_probe();
    // Longer from kill to kill, so that even a slow machine comes to an end.
    const auto patience = std::chrono::milliseconds(200 + random() % 800 + 50 * num_kills);
    const auto end = std::chrono::steady_clock::now() + patience;
    int status = 0;
    while (::waitpid(child, &status, WNOHANG) == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      if (std::chrono::steady_clock::now() >= end) ::kill(child, SIGKILL);
    }
    is_done = WIFEXITED(status);
    fs::create_directories(data_.cache);
    num_kills += !is_done;
    for (const auto& entry : fs::directory_iterator(data_.cache)) {
      if (entry.path().extension() == ".parts") num_kills_between_blocks += !is_done && !fs::is_empty(entry.path());
    }
  }
  std::cout << num_kills << " kills, of which " << num_kills_between_blocks << " left finished blocks\n";
  EXPECT_GE(num_kills, 3);
  EXPECT_GE(num_kills_between_blocks, 1);
  const PackReport report = pack_csv();
  EXPECT_TRUE(report.was_cached);
  data_.cache = folder_ / "undisturbed";
  EXPECT_TRUE(bytes_of(report.file) == bytes_of(pack_csv().file));
}

TEST_F(Pack, LetsOneOfTwoProcessesWork) {
  write_csv(2000);
  const pid_t a = start_probe(), b = start_probe();
  int status_a = -1, status_b = -1;
  ::waitpid(a, &status_a, 0);
  ::waitpid(b, &status_b, 0);
  EXPECT_EQ(status_a, 0);
  EXPECT_EQ(status_b, 0);
  const std::string out = bytes_of(folder_ / "out.json");
  EXPECT_NE(out.find("\"was_cached\":false"), std::string::npos) << out;
  EXPECT_NE(out.find("\"was_cached\":true"), std::string::npos) << out;
  EXPECT_EQ(out.find("error"), std::string::npos) << out;
}

TEST_F(Pack, PacksAgainWhatWasDamagedInTheCache) {
  write_csv(3);
  const PackReport first = pack_csv();
  const std::string bytes = bytes_of(first.file);
  fs::resize_file(first.file, bytes.size() / 2);
  EXPECT_FALSE(pack_csv().was_cached);
  EXPECT_TRUE(bytes_of(first.file) == bytes);
}

TEST_F(Pack, ChecksAFileThatTheUserPacked) {
  write_csv(3);
  const std::string file = pack_csv().file;
  EXPECT_EQ(pack({.path = file}).num_samples, 3);
  SampleEncoder other = small_encoder();
  other.vision.mean = {0.1, 0.2, 0.3};
  const std::string message = failure_of([&] { pack_dataset("train", {.path = file}, data_, other, nullptr); });
  EXPECT_NE(message.find("packed with vision_pixels"), std::string::npos) << message;
  write("text.h5", "not HDF5");
  EXPECT_NE(failure_of([&] { pack({.path = folder_ / "text.h5"}); }).find("text.h5"), std::string::npos);
}

TEST_F(Pack, FailsReadablyWhereItCannotWrite) {
  write_csv(1);
  write("file", "");
  data_.cache = folder_ / "file";
  EXPECT_NE(failure_of([&] { pack_csv(); }, ErrorKind::kIo).find("data.cache"), std::string::npos);
}

TEST_F(Pack, SaysWhyAWriteWasRefusedAndLeavesNothingHalf) {
  write_csv(50);
  rlimit limit{};
  ::getrlimit(RLIMIT_FSIZE, &limit);
  ::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 100000, .rlim_max = limit.rlim_max};  // a disk with room for half of it
  ::setrlimit(RLIMIT_FSIZE, &small);
  const std::string message = failure_of([&] { pack_csv(); }, ErrorKind::kIo);
  ::setrlimit(RLIMIT_FSIZE, &limit);
  EXPECT_NE(message.find("got \"File too large\", expected to write rows of"), std::string::npos) << message;
  for (const auto& entry : fs::recursive_directory_iterator(data_.cache)) {
    EXPECT_NE(entry.path().extension(), ".partial") << entry.path();
  }
  EXPECT_EQ(pack_csv().num_samples, 50);
}

TEST_F(Pack, RemovesBlocksThatNobodyGoesOnWith) {
  write_csv(5);
  const std::string key(16, '0');
  const std::string abandoned = data_.cache + "/train-" + key + ".parts",
                    other = data_.cache + "/test-" + key + ".parts";
  fs::create_directories(abandoned);
  fs::create_directories(other);
  pack_csv();
  EXPECT_FALSE(fs::exists(abandoned));
  EXPECT_TRUE(fs::exists(other));
}

TEST_F(Pack, ShowsChoicesInAnotherOrder) {
  write_csv(3);
  const Dataset dataset(pack_csv().file);
  const Sample sample = dataset.read(1);
  const std::string prompt = dataset.provenance("prompt");
  const Sample same = with_permuted_choices(sample, {0, 1, 2, 3}, prompt, small_encoder());
  EXPECT_EQ(same.tokens, sample.tokens);
  EXPECT_EQ(same.labels, sample.labels);
  EXPECT_EQ(same.answer, sample.answer);
  const Sample shown = with_permuted_choices(sample, {2, 0, 3, 1}, prompt, small_encoder());
  EXPECT_NE(text_of(shown).find("a. cow\nb. cat\nc. hen\nd. dog\n"), std::string::npos) << text_of(shown);
  EXPECT_EQ(shown.answer, 3);
  EXPECT_EQ(label_text_of(shown), "[d<|im_end|>]");
  const Sample back = with_permuted_choices(shown, {0, 1, 2, 3}, prompt, small_encoder());
  EXPECT_EQ(back.tokens, sample.tokens);
  EXPECT_EQ(back.answer, sample.answer);
  EXPECT_NE(failure_of([&] {
              with_permuted_choices(sample, {0, 1, 1, 3}, prompt, small_encoder());
            }).find("got the order [0, 1, 1, 3]"),
            std::string::npos);
}

}  // namespace
}  // namespace hanok
