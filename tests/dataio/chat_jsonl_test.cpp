#include "dataio/import/chat_jsonl.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

using Kind = ContentPart::Kind;

std::vector<Record> records_of(const std::string& bytes, const std::string& encoding = "utf8") {
  const std::string test = ::testing::UnitTest::GetInstance()->current_test_info()->name();
  const auto path = std::filesystem::temp_directory_path() / ("chat_jsonl_test." + test + ".jsonl");
  std::ofstream(path, std::ios::binary) << bytes;
  ChatJsonlSource source("chat", {.path = path.string(), .encoding = encoding});
  std::vector<Record> records;
  for (Record record; source.next(record);) records.push_back(record);
  std::filesystem::remove(path);
  return records;
}

TEST(ChatJsonl, ReadsTurnsWithStringsAndParts) {
  const auto records = records_of(
      R"({"id": "s1", "messages": [{"role": "system", "content": "Be brief."},)"
      R"( {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "and"},)"
      R"( {"type": "image", "path": "b.jpg"}, {"type": "image", "url": "c.webp"},)"
      R"( {"type": "image_url", "image_url": {"url": "d.png"}}]},)"
      R"( {"role": "assistant", "content": "Yes."}]})"
      "\n");
  ASSERT_EQ(records.size(), 1u);
  const Record& record = records[0];
  ASSERT_FALSE(record.is_wrong()) << record.detail;
  EXPECT_EQ(record.id, "s1");
  ASSERT_EQ(record.messages.size(), 3u);
  EXPECT_EQ(record.messages[0].content[0].text, "Be brief.");
  const auto& parts = record.messages[1].content;
  ASSERT_EQ(parts.size(), 5u);
  const std::vector<std::string> texts = {"a.png", "and", "b.jpg", "c.webp", "d.png"};
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(parts[i].text, texts[i]);
    EXPECT_EQ(parts[i].kind, i == 1 ? Kind::kText : Kind::kImage);
  }
}

TEST(ChatJsonl, ReadsVideosAndNamesRecordsByLine) {
  const auto records = records_of(
      "\xef\xbb\xbf\n"
      R"({"messages": [{"role": "user", "content": [{"type": "video", "video": "clip", "fps": 2.5}]}]})"
      "\r\n"
      R"({"id": 12, "messages": [{"role": "user", "content": [{"type": "video", "path": "clip"}]}]})");
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].id, "2");
  EXPECT_EQ(records[0].number, 2);
  EXPECT_EQ(records[0].video_fps, std::vector<double>{2.5});
  EXPECT_EQ(records[0].messages[0].content[0].kind, Kind::kVideo);
  EXPECT_EQ(records[1].id, "12");
  EXPECT_EQ(records[1].video_fps, std::vector<double>{0});
}

TEST(ChatJsonl, RejectsWrongLinesOneByOne) {
  const std::vector<std::pair<std::string, std::string>> lines = {
      {R"({"messages": [)", "json_invalid"},
      {R"([1, 2])", "chat_invalid"},
      {R"({"id": )" + std::string(1 << 20, '[') + std::string(1 << 20, ']') + "}", "json_invalid"},
      {R"({"id": "x"})", "chat_invalid"},
      {R"({"messages": []})", "chat_invalid"},
      {R"({"messages": [{"content": "a"}]})", "chat_invalid"},
      {R"({"messages": [{"role": "user"}]})", "chat_invalid"},
      {R"({"messages": [{"role": "user", "content": null}]})", "chat_invalid"},
      {R"({"messages": [{"role": "user", "content": [{"type": "audio", "audio": "x"}]}]})", "chat_invalid"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image"}]}]})", "chat_invalid"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image", "image": "https://a/b.png"}]}]})", "not_a_file"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image", "image": "data:image/png;base64,"}]}]})",
       "not_a_file"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image", "image": ""}]}]})", "path_empty"},
      {R"({"messages": [{"role": "user", "content": [{"type": "video", "video": "x", "fps": 0}]}]})", "chat_invalid"},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"\xbb\xe7\"}]}", "encoding"},
      {R"({"messages": [{"role": "user", "content": "fine"}]})", ""},
  };
  std::string bytes;
  for (const auto& [line, reason] : lines) bytes += line + "\n";
  const auto records = records_of(bytes);
  ASSERT_EQ(records.size(), lines.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(records[i].reason, lines[i].second) << lines[i].first << " " << records[i].detail;
    if (records[i].is_wrong()) {
      EXPECT_EQ(records[i].detail.rfind("line " + std::to_string(i + 1) + ": ", 0), 0u) << records[i].detail;
    }
  }
  EXPECT_NE(records[8].detail.find("messages[0].content[0].type: got \"audio\", expected text, image or video"),
            std::string::npos)
      << records[8].detail;
  EXPECT_NE(records[14].detail.find("data.sets.chat.encoding: cp949"), std::string::npos) << records[14].detail;
}

TEST(ChatJsonl, ReadsCp949) {
  const auto records = records_of("{\"messages\": [{\"role\": \"user\", \"content\": \"\xbb\xe7\xb0\xfa\"}]}", "cp949");
  ASSERT_EQ(records.size(), 1u);
  ASSERT_FALSE(records[0].is_wrong()) << records[0].detail;
  EXPECT_EQ(records[0].messages[0].content[0].text, "\xec\x82\xac\xea\xb3\xbc");
}

TEST(DatasetKind, FollowsTheKeyOrTheExtension) {
  EXPECT_EQ(dataset_kind("x", {.path = "a/b.csv"}), DatasetKind::kVqaCsv);
  EXPECT_EQ(dataset_kind("x", {.path = "a/b.jsonl"}), DatasetKind::kChatJsonl);
  EXPECT_EQ(dataset_kind("x", {.path = "a/b.h5"}), DatasetKind::kPacked);
  EXPECT_EQ(dataset_kind("x", {.path = "a/b.txt", .kind = "vqa_csv"}), DatasetKind::kVqaCsv);
  EXPECT_ERROR(error_of([] { dataset_kind("x", {.path = "a/b.txt"}); }), ErrorKind::kConfig, "set data.sets.x.kind");
}

TEST(DatasetKind, SaysWhatIsWrongWithThePath) {
  for (const char* path : {"/nonexistent/a.jsonl", "/usr"})
    EXPECT_ERROR(error_of([&] { open_records("x", {.path = path, .kind = "chat_jsonl"}); }), ErrorKind::kData, path);
}

}  // namespace
}  // namespace hanok
