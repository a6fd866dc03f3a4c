#include "dataio/chat.h"

#include <xxhash.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "dataio/file_io.h"
#include "dataio/store/json_stream.h"
#include "dataio/text/chat_qwen3_vl.h"
#include "dataio/text/chat_templates.h"

namespace hanok {
namespace {

using nlohmann::json;

struct Known {
  const char* name;
  const char* jinja;
  Qwen3VlStyle style;
};
constexpr Known kKnown[] = {
    {"qwen3_vl", chat_templates::kQwen3Vl, Qwen3VlStyle::kInstruct},
    {"qwen3_vl_thinking", chat_templates::kQwen3VlThinking, Qwen3VlStyle::kThinking},
    {"qwen3_vl_thinking_unsloth", chat_templates::kQwen3VlThinkingUnsloth, Qwen3VlStyle::kThinkingUnsplit},
};

/// Texts that render the same as a known one.
struct Alias {
  const char* hash;
  const char* name;
};
constexpr Alias kAliases[] = {
    {"e43336a2d8049d9f823d1c1e2ec02008", "qwen3_vl"},  // TRL 1.16.0, trl/chat_templates/qwen3_vl_training.jinja
};

/// xxh3-128 of the text without white space at its end, as `xxh128sum` prints it.
std::string hash_of(std::string_view text) {
  while (!text.empty() && std::string_view(" \t\r\n\v\f").find(text.back()) != std::string_view::npos) {
    text.remove_suffix(1);
  }
  XXH128_canonical_t bytes;
  XXH128_canonicalFromHash(&bytes, XXH3_128bits(text.data(), text.size()));
  std::string out;
  for (const unsigned char byte : bytes.digest) {
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

const Known* find_known(std::string_view name) {
  for (const Known& known : kKnown) {
    if (known.name == name) return &known;
  }
  return nullptr;
}

struct Found {
  std::string text, file;
};

/// A template from the key chat_template: text, or a list of named ones whose "default" counts. Empty if there is none.
std::string template_in(const std::string& file) {
  const json root = read_json(read_file(file), file);
  const json none;
  const json& value = root.is_object() && root.contains("chat_template") ? root["chat_template"] : none;
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return {};
  for (const json& item : value) {
    if (item.is_object() && item.value("name", json()) == "default" && item.value("template", json()).is_string()) {
      return item["template"].get<std::string>();
    }
  }
  return {};
}

/// transformers' order: a file of its own before the older JSON file before the tokenizer's config.
Found find_template(const std::string& folder) {
  const auto exists = [](const std::string& path) {
    std::error_code ignored;
    return std::filesystem::exists(path, ignored);
  };
  if (const std::string file = folder + "/chat_template.jinja"; exists(file)) return {read_file(file), file};
  for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
    const std::string file = folder + "/" + name;
    if (!exists(file)) continue;
    if (std::string text = template_in(file); !text.empty()) return {std::move(text), file};
  }
  return {};
}

std::shared_ptr<const ChatTemplate> make(const Known& known) {
  return make_qwen3_vl_chat(known.name, known.style);
}

}  // namespace

std::vector<std::string> known_chat_templates() {
  std::vector<std::string> out;
  for (const Known& known : kKnown) out.emplace_back(known.name);
  return out;
}

std::string jinja_of(std::string_view name) {
  const Known* known = find_known(name);
  HANOK_REQUIRE(known, kConfig) << "data.chat_template: got " << name << ", expected one of " << known_chat_templates();
  return known->jinja;
}

std::shared_ptr<const ChatTemplate> chat_template_from_folder(const std::string& folder,
                                                              const std::string& override_name) {
  if (!override_name.empty()) {
    const Known* known = find_known(override_name);
    HANOK_REQUIRE(known, kConfig) << "data.chat_template: got " << override_name << ", expected one of "
                                  << known_chat_templates() << "; leave it empty to take the folder's own";
    return make(*known);
  }
  const Found found = find_template(folder);
  HANOK_REQUIRE(!found.text.empty(), kData)
      << "chat template: got none, expected chat_template.jinja, chat_template.json or the key chat_template of "
         "tokenizer_config.json; "
      << folder << "; copy it from the model, or set data.chat_template to one of " << known_chat_templates();
  const std::string hash = hash_of(found.text);
  for (const Known& known : kKnown) {
    if (hash == hash_of(known.jinja)) return make(known);
  }
  for (const Alias& alias : kAliases) {
    if (hash == alias.hash) return make(*find_known(alias.name));
  }
  HANOK_FAIL(kData)
      << "chat template: got a text with hash " << hash << ", expected that of " << known_chat_templates() << "; "
      << found.file
      << "; if it renders like one of them, set data.chat_template to that name, else use the template of the "
         "original model";
}

}  // namespace hanok
