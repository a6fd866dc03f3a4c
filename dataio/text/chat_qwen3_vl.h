// The chat format of Qwen3-VL in its published variants.
#pragma once

#include <memory>
#include <string>

#include "dataio/chat.h"

namespace hanok {

enum class Qwen3VlStyle {
  kInstruct,
  kThinking,  // <think> in the generation prompt; reasoning is cut out of the content and kept after the last question
  kThinkingUnsplit,  // the same, but the template's cut has no effect (its assignments are local to a Jinja loop)
};

std::shared_ptr<const ChatTemplate> make_qwen3_vl_chat(std::string name, Qwen3VlStyle style);

}  // namespace hanok
