// The Jinja texts behind the renderers of chat.h.
#pragma once

namespace hanok::chat_templates {

extern const char kQwen3Vl[];
extern const char kQwen3VlThinking[];
extern const char kQwen3VlThinkingUnsloth[];

}  // namespace hanok::chat_templates
