#include "dataio/text/chat_qwen3_vl.h"

#include "base/error.h"

namespace hanok {
namespace {

using Kind = ContentPart::Kind;

constexpr std::string_view kImage = "<|vision_start|><|image_pad|><|vision_end|>";
constexpr std::string_view kVideo = "<|vision_start|><|video_pad|><|vision_end|>";
constexpr std::string_view kEnd = "<|im_end|>";

std::string_view without_leading_newlines(std::string_view text) {
  const size_t first = text.find_first_not_of('\n');
  return first == std::string_view::npos ? std::string_view() : text.substr(first);
}

std::string_view without_trailing_newlines(std::string_view text) {
  return text.substr(0, text.find_last_not_of('\n') + 1);
}

/// The content as the template's own tests see it.
std::string flat(const Message& message) {
  std::string out;
  for (const ContentPart& part : message.content) {
    out += part.kind == Kind::kText ? std::string_view(part.text) : part.kind == Kind::kImage ? kImage : kVideo;
  }
  return out;
}

class Renderer {
 public:
  Renderer(const std::vector<Message>& messages, Qwen3VlStyle style, bool leaves_last_open)
      : messages_(messages), style_(style), leaves_last_open_(leaves_last_open) {
    if (style != Qwen3VlStyle::kInstruct) last_query_ = last_query();
  }

  RenderedChat run(bool add_generation_prompt) {
    for (size_t i = 0; i < messages_.size(); ++i) message(i);
    if (add_generation_prompt) {
      put("<|im_start|>assistant\n");
      if (style_ != Qwen3VlStyle::kInstruct) put("<think>\n");
    }
    return std::move(out_);
  }

 private:
  int64_t here() const { return static_cast<int64_t>(out_.text.size()); }
  void put(std::string_view text) { out_.text += text; }
  void put_literal(std::string_view text) {
    if (text.empty()) return;
    const int64_t begin = here();
    put(text);
    out_.literal.push_back({begin, here()});
  }

  void put_content(const Message& m) {
    for (const ContentPart& part : m.content) {
      if (part.kind == Kind::kText) {
        put_literal(part.text);
        continue;
      }
      const int64_t begin = here();
      put(part.kind == Kind::kImage ? kImage : kVideo);
      out_.vision.push_back({part.kind, part.text, {begin, here()}});
    }
  }

  void message(size_t i) {
    const Message& m = messages_[i];
    const auto role_at = [&](size_t j) { return j < messages_.size() ? std::string_view(messages_[j].role) : ""; };
    if (m.role == "system") {
      if (style_ == Qwen3VlStyle::kInstruct) {
        HANOK_REQUIRE(i == 0, kData) << "message " << i + 1
                                     << ": got a system message, expected it first; the chat template "
                                        "renders none elsewhere; move it to the front";
        require_text_only(i, "system");
      }
      put("<|im_start|>system\n");
      put_content(m);
      put("<|im_end|>\n");
    } else if (m.role == "user") {
      put("<|im_start|>user\n");
      put_content(m);
      put("<|im_end|>\n");
    } else if (m.role == "assistant") {
      require_text_only(i, "assistant");
      assistant(i);
    } else if (m.role == "tool") {
      if (i == 0 || role_at(i - 1) != "tool") put("<|im_start|>user");
      put("\n<tool_response>\n");
      put_content(m);
      put("\n</tool_response>");
      if (role_at(i + 1) != "tool") put("<|im_end|>\n");
    } else {
      HANOK_FAIL(kData) << "message " << i + 1 << ": got role \"" << m.role
                        << "\", expected system, user, assistant or tool; the chat template renders no other";
    }
  }

  void require_text_only(size_t i, const char* role) const {
    for (const ContentPart& part : messages_[i].content) {
      HANOK_REQUIRE(part.kind == Kind::kText, kData)
          << "message " << i + 1 << ": got a picture or video in a message of the " << role
          << ", expected text; move it into a message of the user";
    }
  }

  void assistant(size_t i) {
    const std::string whole = flat(messages_[i]);
    std::string_view content = whole, reasoning;
    constexpr std::string_view kOpen = "<think>", kClose = "</think>";
    if (const size_t close = content.find(kClose);
        style_ == Qwen3VlStyle::kThinking && close != std::string_view::npos) {
      reasoning = without_trailing_newlines(content.substr(0, close));
      if (const size_t open = reasoning.rfind(kOpen); open != std::string_view::npos) {
        reasoning = reasoning.substr(open + kOpen.size());
      }
      reasoning = without_leading_newlines(reasoning);
      content = without_leading_newlines(content.substr(content.rfind(kClose) + kClose.size()));
    }
    const bool is_last = i + 1 == messages_.size();
    put("<|im_start|>assistant\n");
    int64_t begin = here();
    if (static_cast<int64_t>(i) > last_query_ && (is_last || !reasoning.empty())) {
      put("<think>\n");
      begin = here();  // the generation prompt holds what comes before
      put_literal(without_leading_newlines(without_trailing_newlines(reasoning)));
      put("\n</think>\n\n");
      content = without_leading_newlines(content);
    }
    put_literal(content);
    if (is_last && leaves_last_open_) return;
    put(kEnd);
    out_.labels.push_back({begin, here()});
    put("\n");
  }

  /// The last message of the user that is no tool's answer: reasoning before it is not shown again.
  int64_t last_query() const {
    for (size_t i = messages_.size(); i-- > 0;) {
      if (messages_[i].role != "user") continue;
      const std::string content = flat(messages_[i]);
      if (!content.starts_with("<tool_response>") || !content.ends_with("</tool_response>"))
        return static_cast<int64_t>(i);
    }
    return static_cast<int64_t>(messages_.size()) - 1;
  }

  const std::vector<Message>& messages_;
  const Qwen3VlStyle style_;
  const bool leaves_last_open_;
  int64_t last_query_ = INT64_MAX;  // the Instruct template has no such notion
  RenderedChat out_;
};

class Qwen3VlChat : public ChatTemplate {
 public:
  Qwen3VlChat(std::string name, Qwen3VlStyle style) : name_(std::move(name)), style_(style) {}
  std::string_view name() const override { return name_; }

  RenderedChat render(const std::vector<Message>& messages,
                      bool add_generation_prompt,
                      bool continue_final_message) const override {
    HANOK_REQUIRE(!messages.empty(), kData) << "chat: got no message, expected at least one";
    if (continue_final_message) {
      HANOK_REQUIRE(!add_generation_prompt, kData)
          << "chat: got a generation prompt and a message to continue, expected one of them";
      HANOK_REQUIRE(messages.back().role == "assistant" && !messages.back().content.empty(), kData)
          << "chat: got role \"" << messages.back().role
          << "\" as the message to continue, expected an assistant with text";
    }
    return Renderer(messages, style_, continue_final_message).run(add_generation_prompt);
  }

 private:
  std::string name_;
  Qwen3VlStyle style_;
};

}  // namespace

std::shared_ptr<const ChatTemplate> make_qwen3_vl_chat(std::string name, Qwen3VlStyle style) {
  return std::make_shared<Qwen3VlChat>(std::move(name), style);
}

}  // namespace hanok
