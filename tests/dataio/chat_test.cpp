#include "dataio/chat.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "base/error.h"
#include "temp_folder.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

using Kind = ContentPart::Kind;

Message text(std::string role, std::string content) {
  return {std::move(role), {{Kind::kText, std::move(content)}}};
}

std::shared_ptr<const ChatTemplate> named(const char* name) {
  return chat_template_from_folder("", name);
}

std::vector<std::string> pieces(const RenderedChat& chat, const std::vector<Span>& spans) {
  std::vector<std::string> out;
  for (const Span& s : spans)
    out.push_back(chat.text.substr(static_cast<size_t>(s.begin), static_cast<size_t>(s.end - s.begin)));
  return out;
}

TEST(Chat, InstructRendersTurnsAndMarksWhatTheAssistantSays) {
  const auto chat = named("qwen3_vl")
                        ->render({text("system", "Be brief."),
                                  text("user", "1+1?"),
                                  text("assistant", "2"),
                                  text("user", "2+2?"),
                                  text("assistant", "4")},
                                 false,
                                 false);
  EXPECT_EQ(
      chat.text,
      "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
      "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n");
  EXPECT_EQ(pieces(chat, chat.labels), (std::vector<std::string>{"2<|im_end|>", "4<|im_end|>"}));
  EXPECT_EQ(pieces(chat, chat.literal), (std::vector<std::string>{"Be brief.", "1+1?", "2", "2+2?", "4"}));
}

TEST(Chat, PicturesStandWhereTheyWereGiven) {
  const Message user = {
      "user",
      {{Kind::kText, "a "}, {Kind::kImage, "x.png"}, {Kind::kVideo, "frames"}, {Kind::kText, " <|image_pad|>"}}};
  const auto chat = named("qwen3_vl")->render({user}, true, false);
  EXPECT_EQ(
      chat.text,
      "<|im_start|>user\na <|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|> "
      "<|image_pad|><|im_end|>\n<|im_start|>assistant\n");
  ASSERT_EQ(chat.vision.size(), 2u);
  EXPECT_EQ(chat.vision[0].path, "x.png");
  EXPECT_EQ(chat.vision[1].kind, Kind::kVideo);
  EXPECT_EQ(pieces(chat, {chat.vision[0].placeholder})[0], "<|vision_start|><|image_pad|><|vision_end|>");
  EXPECT_EQ(pieces(chat, {chat.vision[1].placeholder})[0], "<|vision_start|><|video_pad|><|vision_end|>");
  EXPECT_EQ(pieces(chat, chat.literal), (std::vector<std::string>{"a ", " <|image_pad|>"}));
  EXPECT_TRUE(chat.labels.empty());
}

TEST(Chat, ThinkingKeepsReasoningOnlyAfterTheLastQuestion) {
  const std::string answer = "<think>\nwhy\n</think>\n\nB";
  const auto chat =
      named("qwen3_vl_thinking")
          ->render({text("user", "p"), text("assistant", answer), text("user", "q"), text("assistant", answer)},
                   false,
                   false);
  EXPECT_EQ(chat.text,
            "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
            "<|im_start|>assistant\n<think>\nwhy\n</think>\n\nB<|im_end|>\n");
  EXPECT_EQ(pieces(chat, chat.labels), (std::vector<std::string>{"B<|im_end|>", "why\n</think>\n\nB<|im_end|>"}));
  EXPECT_TRUE(
      named("qwen3_vl_thinking")->render({text("user", "q")}, true, false).text.ends_with("assistant\n<think>\n"));
}

TEST(Chat, APrefilledAnswerIsLeftOpenAndIsNoLabel) {
  const auto chat = named("qwen3_vl")->render({text("user", "q"), text("assistant", "The answer is ")}, false, true);
  EXPECT_EQ(chat.text, "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nThe answer is ");
  EXPECT_TRUE(chat.labels.empty());
}

TEST(Chat, RefusesWhatTheTemplateWouldDrop) {
  const auto chat = named("qwen3_vl");
  const auto refused = [&](const std::vector<Message>& messages, const char* said) {
    const std::string error = message_of(ErrorKind::kData, [&] { chat->render(messages, false, false); });
    EXPECT_NE(error.find(said), std::string::npos) << error;
  };
  refused({}, "no message");
  refused({text("user", "q"), text("developer", "x")}, "message 2: got role \"developer\"");
  refused({text("user", "q"), text("system", "x")}, "message 2: got a system message");
  refused({{"assistant", {{Kind::kImage, "x.png"}}}}, "picture");
  refused({{"system", {{Kind::kImage, "x.png"}}}}, "picture");
  EXPECT_THROW(chat->render({text("user", "q")}, false, true), Error);
  EXPECT_THROW(chat->render({text("assistant", "q")}, true, true), Error);
}

TEST(ChatTemplate, IsChosenByTheHashOfTheFoldersText) {
  std::ifstream training(HANOK_SOURCE_DIR "/tests/data/chat_templates/qwen3_vl_training.jinja");
  std::stringstream training_text;
  training_text << training.rdbuf();
  for (const std::string& name : known_chat_templates()) {
    const TempFolder folder;
    std::ofstream(folder / "chat_template.jinja") << jinja_of(name) << "\n\n";
    EXPECT_EQ(chat_template_from_folder(folder.path(), "")->name(), name);
  }
  const TempFolder folder;
  std::ofstream(folder / "chat_template.jinja") << training_text.str();
  EXPECT_EQ(chat_template_from_folder(folder.path(), "")->name(), "qwen3_vl");
}

TEST(ChatTemplate, IsFoundInEveryFileThatMayHoldIt) {
  const auto quoted = [](const std::string& raw) {
    std::string out = "\"";
    for (const char c : raw) {
      if (c == '"' || c == '\\') out += '\\';
      c == '\n' ? out += "\\n" : out += c;
    }
    return out + "\"";
  };
  const std::string thinking = quoted(jinja_of("qwen3_vl_thinking")), instruct = quoted(jinja_of("qwen3_vl"));
  const TempFolder folder;
  const auto found = [&] { return std::string(chat_template_from_folder(folder.path(), "")->name()); };
  std::ofstream(folder / "tokenizer_config.json")
      << R"({"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": )" << instruct
      << "}]}";
  EXPECT_EQ(found(), "qwen3_vl");
  std::ofstream(folder / "chat_template.json") << "{\"chat_template\": " << thinking << "}";
  EXPECT_EQ(found(), "qwen3_vl_thinking");
  std::ofstream(folder / "chat_template.jinja") << jinja_of("qwen3_vl");
  EXPECT_EQ(found(), "qwen3_vl");
}

TEST(ChatTemplate, AnUnknownOneIsNeverGuessed) {
  const std::string qwen2 = HANOK_SOURCE_DIR "/tests/data/qwen_tokenizer";  // carries Qwen2's template
  const std::string unknown = message_of(ErrorKind::kData, [&] { chat_template_from_folder(qwen2, ""); });
  EXPECT_NE(unknown.find("hash"), std::string::npos) << unknown;
  EXPECT_NE(unknown.find("data.chat_template"), std::string::npos) << unknown;
  EXPECT_EQ(chat_template_from_folder(qwen2, "qwen3_vl")->name(), "qwen3_vl");
  const TempFolder folder;
  const std::string none = message_of(ErrorKind::kData, [&] { chat_template_from_folder(folder.path(), ""); });
  EXPECT_NE(none.find("got none"), std::string::npos) << none;
  const std::string wrong = message_of(ErrorKind::kConfig, [&] { chat_template_from_folder(qwen2, "qwen9"); });
  EXPECT_NE(wrong.find("qwen3_vl_thinking"), std::string::npos) << wrong;
}

}  // namespace
}  // namespace hanok
