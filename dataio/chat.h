// Chat messages -> text, exactly as the model folder's template renders them, with notes of what each stretch is.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dataio/tokenizer.h"

namespace hanok {

struct ContentPart {
  enum class Kind { kText, kImage, kVideo } kind = Kind::kText;
  std::string text;  // text, or the path of the picture, or of the folder of frames
  // Of a picture, where its record asks for another size than VisionPrep: as in qwen-vl-utils. 0: it does not.
  int64_t min_pixels = 0, max_pixels = 0;
  int64_t resized_height = 0, resized_width = 0;  // what it is resized from instead of its own size
};

struct Message {
  std::string role;  // "system", "user", "assistant", "tool"
  std::vector<ContentPart> content;
};

/// Where the vision tokens of one picture or video go: the byte span of its placeholder triple in the rendered text.
struct VisionSlot {
  ContentPart::Kind kind;
  std::string path;
  Span placeholder;  // "<|vision_start|><|image_pad|><|vision_end|>"
};

struct RenderedChat {
  std::string text;
  // Bytes that the assistant must produce, its end token included: one span per assistant turn, none for an open one.
  std::vector<Span> labels;
  std::vector<Span> literal;  // bytes that came from the messages: special tokens are not parsed there
  std::vector<VisionSlot> vision;
};

/// A renderer per known template. Chosen by the hash of the template's text, never guessed.
class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;
  virtual std::string_view name() const = 0;  // one of known_chat_templates()
  /// `add_generation_prompt`: end with what precedes the assistant's answer. A last assistant message with
  /// `continue_final_message` is left open (prefill).
  /// errors: kData for a role or a content kind that the template does not know or would silently drop
  virtual RenderedChat render(const std::vector<Message>& messages,
                              bool add_generation_prompt,
                              bool continue_final_message) const = 0;
};

/// The template of a model folder: chat_template.jinja, chat_template.json, or the key in tokenizer_config.json.
/// `override_name` (config key data.chat_template) names one outright.
/// errors: kData with the hash, the known names and what to do when the template is unknown; kConfig for an unknown
/// name
std::shared_ptr<const ChatTemplate> chat_template_from_folder(const std::string& folder,
                                                              const std::string& override_name);
std::vector<std::string> known_chat_templates();
/// The Jinja text that belongs to a known template, for folders written without one (export of a model trained from
/// scratch).
std::string jinja_of(std::string_view name);

}  // namespace hanok
