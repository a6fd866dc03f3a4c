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

/// A line whose picture has these keys as well.
std::string picture(const std::string& keys) {
  return concat(R"({"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png", )", keys, "}]}]}");
}

TEST(ChatJsonl, ReadsTurnsWithStringsAndParts) {
  const auto records = records_of(
      R"({"id": "s1", "messages": [{"role": "system", "content": "Be brief."},)"
      R"( {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "and"},)"
      R"( {"type": "image", "path": "b.jpg"}, {"type": "image", "url": "c.webp"},)"
      R"( {"type": "image_url", "image_url": {"url": "d.png"}}, {"type": "image", "image": "file:///e.png"}]},)"
      R"( {"role": "assistant", "content": "Yes."}]})"
      "\n");
  ASSERT_EQ(records.size(), 1u);
  const Record& record = records[0];
  ASSERT_FALSE(record.is_wrong()) << record.detail;
  EXPECT_EQ(record.id, "s1");
  ASSERT_EQ(record.messages.size(), 3u);
  EXPECT_EQ(record.messages[0].content[0].text, "Be brief.");
  const auto& parts = record.messages[1].content;
  ASSERT_EQ(parts.size(), 6u);
  const std::vector<std::string> texts = {"a.png", "and", "b.jpg", "c.webp", "d.png", "/e.png"};
  for (size_t i = 0; i < 6; ++i) {
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

TEST(ChatJsonl, PicturesAskForTheirSize) {
  const Record record =
      records_of(picture(R"("min_pixels": 64, "max_pixels": null, "resized_height": 2, "resized_width": 3)")).at(0);
  ASSERT_FALSE(record.is_wrong()) << record.detail;
  const ContentPart& part = record.messages.at(0).content.at(0);
  EXPECT_EQ(part.min_pixels, 64);
  EXPECT_EQ(part.max_pixels, 0);
  EXPECT_EQ(part.resized_height, 2);
  EXPECT_EQ(part.resized_width, 3);
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
      {R"({"messages": [{"role": "user", "content": [{"type": "image", "image": "a\u0000.png"}]}]})", "not_a_file"},
      {R"({"messages": [{"role": "user", "content": "a"}], "messages": [{"role": "user", "content": "b"}]})",
       "json_invalid"},
      {R"({"messages": [{"role": "user", "content": "a", "content": "b"}]})", "json_invalid"},
      {std::string("{\"messages\": [{\"role\": \"user\", \"content\": \"a") + '\0' + "\"}]}", "encoding"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image", "image": "https://a/b.png"}]}]})", "not_a_file"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image", "image": "data:image/png;base64,"}]}]})",
       "not_a_file"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image", "image": ""}]}]})", "path_empty"},
      {R"({"messages": [{"role": "user", "content": [{"type": "video", "video": "x", "fps": 0}]}]})", "chat_invalid"},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"\xbb\xe7\"}]}", "encoding"},
      {picture(R"("max_pixels": 0)"), "chat_invalid"},
      {picture(R"("min_pixels": 1.5)"), "chat_invalid"},
      {picture(R"("min_pixels": "64")"), "chat_invalid"},
      {picture(R"("max_pixels": -1)"), "chat_invalid"},
      {picture(R"("max_pixels": 18446744073709551615)"), "chat_invalid"},
      {picture(R"("min_pixels": 65, "max_pixels": 64)"), "chat_invalid"},
      {picture(R"("resized_height": 64)"), "chat_invalid"},
      {R"({"messages": [{"role": "user", "content": [{"type": "video", "video": "x", "nframes": 8}]}]})",
       "unknown_key"},
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
  const auto expect_said = [&](size_t i, const char* text) {
    EXPECT_NE(records[i].detail.find(text), std::string::npos) << records[i].detail;
  };
  expect_said(4, "messages: got an empty list, expected a list with turns");
  expect_said(10, R"(content[0].image: got 'a\u0000.png', expected a path without a zero byte)");
  expect_said(11, "got key 'messages' twice, expected it once");
  expect_said(12, "got key 'content' twice, expected it once");
  expect_said(13, "got bytes that are no text: byte 45 is a zero; remove it");
  expect_said(18, "data.sets.chat.encoding: cp949");
}

TEST(ChatJsonl, PutsPicturesOfTheRecordWhereItsPlaceholdersAre) {
  const auto records = records_of(
      R"({"messages": [{"role": "user", "content": "<image>\nand <image>?"}, {"role": "assistant", "content": "a"},)"
      R"( {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "<image> is a tag"},)"
      R"( {"type": "image", "image": "own.png"}]}], "images": ["1.png", {"path": "2.png", "bytes": null}, "3.png"]})"
      "\n"
      R"({"messages": [{"role": "user", "content": "What?<image>"}], "images": "4.png"})"
      "\n"
      R"({"messages": [{"role": "user", "content": "an <image> tag"}], "images": null})"
      "\n"
      R"({"messages": [{"role": "user", "content": "no picture"}], "images": []})");
  const std::vector<std::vector<std::string>> expected = {{"[1.png]", "\nand ", "[2.png]", "?"},
                                                          {"[3.png]", "<image> is a tag", "[own.png]"},
                                                          {"What?", "[4.png]"},
                                                          {"an <image> tag"},
                                                          {"no picture"}};
  std::vector<std::vector<std::string>> got;
  for (const Record& record : records) {
    EXPECT_FALSE(record.is_wrong()) << record.detail;
    for (const Message& message : record.messages) {
      if (message.role != "user") continue;
      auto& parts = got.emplace_back();
      for (const ContentPart& part : message.content)
        parts.push_back(part.kind == Kind::kText ? part.text : "[" + part.text + "]");
    }
  }
  EXPECT_EQ(got, expected);
}

TEST(ChatJsonl, RefusesPicturesThatAreNotAsManyAsPlaceholders) {
  const auto record_of = [](const std::string& content, const std::string& images) {
    return records_of(R"({"messages": [{"role": "user", "content": ")" + content + R"("}], "images": )" + images + "}")
        .at(0);
  };
  EXPECT_EQ(record_of("<image> <image>", R"(["1.png"])").detail,
            "line 1: images: got 1, expected 2, one for each <image> in the messages");
  for (const auto& [content, images, reason] : {std::tuple("<image> <image>", R"(["1.png"])", "image_count"),
                                                {"<image>", R"(["1.png", "2.png"])", "image_count"},
                                                {"<image>", "[]", "image_count"},
                                                {"x", R"("1.png")", "image_count"},
                                                {"<image>", R"([""])", "path_empty"},
                                                {"<image>", R"(["http://a/b.png"])", "not_a_file"},
                                                {"<image>", R"(["a\u0000"])", "not_a_file"},
                                                {"<image>", "[null]", "chat_invalid"},
                                                {"<image>", R"([{"bytes": "x"}])", "chat_invalid"},
                                                {"<image>", "7", "chat_invalid"}}) {
    const Record record = record_of(content, images);
    EXPECT_EQ(record.reason, reason) << content << " " << images << " " << record.detail;
  }
}

TEST(ChatJsonl, RefusesKeysThatChangeWhatIsLearnedAndTakesNotes) {
  const auto record_of = [](const std::string& in_message, const std::string& in_record) {
    return records_of(R"({"messages": [{"role": "user", "content": "a")" + in_message + "}]" + in_record + "}").at(0);
  };
  for (const char* key : {"tools", "videos", "audios", "image", "weight", "train", "loss", "mask", "system"}) {
    const Record record = record_of("", concat(R"(, ")", key, R"(": [1])"));
    EXPECT_EQ(record.reason, "unknown_key") << key;
    EXPECT_EQ(record.detail.find(concat("line 1: the record: unknown key ", key, ", expected")), 0u) << record.detail;
  }
  for (const char* key : {"tool_calls", "images", "reasoning_content", "weight", "train", "loss", "mask"}) {
    const Record record = record_of(concat(R"(, ")", key, R"(": 0)"), "");
    EXPECT_EQ(record.reason, "unknown_key") << key;
    EXPECT_EQ(record.detail.find(concat("line 1: messages[0]: unknown key ", key, ", expected")), 0u) << record.detail;
  }
  const Record noted =
      record_of(R"(, "name": "x", "tool_calls": null)",
                R"(, "source": "web", "meta": {"weight": 3}, "tools": [], "system": "", "videos": null)");
  EXPECT_FALSE(noted.is_wrong()) << noted.detail;
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
