// Which tokens the config files beside a tokenizer add, and which ids they get: transformers 5,
// tokenization_utils_base.py and tokenization_utils_tokenizers.py.
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/error.h"
#include "dataio/file_io.h"
#include "dataio/store/json_stream.h"
#include "dataio/store/strict_json.h"
#include "dataio/text/tokenizer_spec.h"
#include "dataio/text/unicode.h"

namespace hanok::tokenizer_spec {
namespace {

using nlohmann::json;

/// transformers' SPECIAL_TOKENS_ATTRIBUTES, in its order.
constexpr const char* kNamed[] = {
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};
constexpr char kQwen2Default[] = "<|endoftext|>";  // Qwen2Tokenizer's unk_token, eos_token and pad_token

/// The files' contents, as far as they speak of added tokens.
struct Config {
  std::string where;
  std::map<int32_t, AddedToken> decoder;  // added_tokens_decoder
  bool has_decoder = false;
  std::vector<std::pair<std::string, AddedToken>> named;  // key -> token
  std::vector<AddedToken> extra;
};

AddedToken plain_special(std::string content) {
  return {.content = std::move(content), .normalized = false, .special = true};
}

/// "text" or {"content": "text", "lstrip": ...}.
AddedToken token_of(const json& value, const std::string& where) {
  if (value.is_string()) return plain_special(value.get<std::string>());
  HANOK_REQUIRE(value.is_object() && value.contains("content") && value["content"].is_string(), kData)
      << where << ": got a " << value.type_name() << ", expected text or an object with \"content\"";
  const auto flag = [&](const char* key, bool absent) {
    const auto found = value.find(key);
    if (found == value.end() || found->is_null()) return absent;
    HANOK_REQUIRE(found->is_boolean(), kData)
        << where << "." << key << ": got a " << found->type_name() << ", expected true or false";
    return found->get<bool>();
  };
  const bool special = flag("special", false);
  return {.content = value["content"].get<std::string>(),
          .single_word = flag("single_word", false),
          .lstrip = flag("lstrip", false),
          .rstrip = flag("rstrip", false),
          .normalized = flag("normalized", !special),
          .special = special};
}

int32_t id_of(const std::string& text, const std::string& where) {
  int32_t id = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  HANOK_REQUIRE(error == std::errc() && end == text.data() + text.size() && id >= 0, kData)
      << where << ": got id " << shown(text) << ", expected a number from 0";
  return id;
}

/// Reads the keys that name tokens: "pad_token", any other "..._token", and the lists of extra ones.
void read_names(Config& config, const json& root, const std::string& where) {
  const auto name = [&](const std::string& key, const json& value) {
    const auto same = [&](const auto& entry) { return entry.first == key; };
    std::erase_if(config.named, same);  // a later file replaces an earlier one
    if (!value.is_null()) config.named.emplace_back(key, token_of(value, where + ": " + key));
  };
  for (const auto& [key, value] : root.items()) {
    if (key.ends_with("_token") && (value.is_string() || value.is_object() || value.is_null())) name(key, value);
    if (key != "additional_special_tokens" && key != "extra_special_tokens") continue;
    if (value.is_object()) {
      for (const auto& [inner, token] : value.items()) name(inner, token);
    } else if (!value.is_null()) {
      HANOK_REQUIRE(value.is_array(), kData)
          << where << ": " << key << ": got a " << value.type_name() << ", expected a list";
      config.extra.clear();
      for (const json& token : value) config.extra.push_back(token_of(token, where + ": " + key));
    }
  }
}

bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

Config read_config(const std::string& folder, bool defaults) {
  Config config;
  config.where = folder + "/tokenizer_config.json";
  json root = json::object();
  if (exists(config.where)) {
    root = read_json(read_file(config.where),
                     config.where,
                     {{"added_tokens_decoder", [&](const std::string& key, json& value) {
                         AddedToken token =
                             token_of(value, config.where + ": added_tokens_decoder." + unicode::beginning(key, 20));
                         token.id = id_of(key, config.where + ": added_tokens_decoder");
                         config.decoder[token.id] = token;
                       }}});
    HANOK_REQUIRE(root.is_object(), kData) << config.where << ": got a " << root.type_name() << ", expected an object";
    config.has_decoder = root.contains("added_tokens_decoder");
  }
  if (defaults) {
    const auto type = root.find("tokenizer_class");
    HANOK_REQUIRE(type == root.end() || type->is_null() || *type == "Qwen2Tokenizer" || *type == "Qwen2TokenizerFast",
                  kData)
        << config.where << ": tokenizer_class: got " << shown(type->dump().substr(0, 100))
        << ", expected Qwen2Tokenizer beside vocab.json; add the model's tokenizer.json";
    const auto prefix = root.find("add_prefix_space");
    HANOK_REQUIRE(prefix == root.end() || *prefix != true, kData)
        << config.where << ": add_prefix_space: got true, expected false; add the model's tokenizer.json";
    for (const char* key : {"eos_token", "pad_token", "unk_token"}) {
      if (!root.contains(key)) root[key] = kQwen2Default;
    }
  }
  const auto split = root.find("split_special_tokens");
  HANOK_REQUIRE(split == root.end() || *split != true, kData)
      << config.where << ": split_special_tokens: got true, expected false; set it to false";
  read_names(config, root, config.where);
  return config;
}

/// Folders without added_tokens_decoder: older files say the same.
void read_older_files(Config& config, const std::string& folder) {
  const std::string map = folder + "/special_tokens_map.json", added = folder + "/added_tokens.json";
  if (exists(map)) {
    const json root = read_json(read_file(map), map);
    HANOK_REQUIRE(root.is_object(), kData) << map << ": got a " << root.type_name() << ", expected an object";
    read_names(config, root, map);
  }
  if (!exists(added)) return;
  const auto is_special = [&](const std::string& text) {
    const auto same = [&](const AddedToken& token) { return token.content == text; };
    return std::any_of(
               config.named.begin(), config.named.end(), [&](const auto& entry) { return same(entry.second); }) ||
           std::any_of(config.extra.begin(), config.extra.end(), same);
  };
  read_json(read_file(added), added, {{"", [&](const std::string& text, json& id) {
                                         HANOK_REQUIRE(id.is_number_unsigned() && id.get<uint64_t>() < INT32_MAX, kData)
                                             << added << ": token " << shown(text) << ": got id "
                                             << shown(id.dump().substr(0, 100)) << ", expected a number from 0";
                                         const bool special = is_special(text);
                                         const int32_t number = id.get<int32_t>();
                                         config.decoder[number] = {
                                             .content = text, .id = number, .normalized = !special, .special = special};
                                       }}});
}

}  // namespace

std::vector<AddedToken> configured_tokens(const std::string& folder, bool defaults) {
  Config config = read_config(folder, defaults);
  if (!config.has_decoder) read_older_files(config, folder);

  std::vector<AddedToken> out;
  std::unordered_map<std::string, size_t> place;
  for (const auto& [id, token] : config.decoder) {
    if (place.emplace(token.content, out.size()).second) out.push_back(token);
  }
  // A named token keeps the flags of its entry in the list; being named by another key or as an extra token resets
  // them.
  const auto add = [&](AddedToken token, bool keeps_flags) {
    token.special = true;
    const auto [found, is_new] = place.emplace(token.content, out.size());
    if (is_new) return out.push_back(std::move(token));
    AddedToken& known = out[found->second];
    token.id = known.id;
    if (keeps_flags) token = known, token.special = true;
    known = std::move(token);
  };
  for (const char* key : kNamed) {
    for (const auto& [name, token] : config.named) {
      if (name == key) add(token, true);
    }
  }
  for (const auto& [name, token] : config.named) {
    if (std::find(std::begin(kNamed), std::end(kNamed), name) == std::end(kNamed)) add(token, false);
  }
  for (const AddedToken& token : config.extra) add(token, false);
  return out;
}

void add_tokens(TokenizerSpec& spec, const std::vector<AddedToken>& tokens, const std::string& where) {
  const auto vocabulary = static_cast<int64_t>(spec.vocabulary.size());
  std::unordered_map<std::string, size_t> place;
  int64_t next = vocabulary;
  for (size_t i = 0; i < spec.added.size(); ++i) {
    place.emplace(spec.added[i].content, i);
    next = std::max<int64_t>(next, spec.added[i].id + int64_t{1});
  }
  for (AddedToken token : tokens) {
    if (token.content.empty()) continue;
    const auto known = place.find(token.content);
    const auto base = spec.vocabulary.find(token.content);
    const int64_t id = known != place.end() ? spec.added[known->second].id : base ? spec.ids[*base] : next++;
    HANOK_REQUIRE(id < INT32_MAX && (token.id < 0 || token.id == id), kData)
        << "added token " << shown(token.content) << ": got id " << token.id << ", expected " << id
        << " (its place after the vocabulary and the tokens before it); " << where
        << "; list the added tokens without gaps";
    token.id = static_cast<int32_t>(id);
    if (known != place.end()) {
      spec.added[known->second] = std::move(token);
    } else {
      place.emplace(token.content, spec.added.size());
      spec.added.push_back(std::move(token));
    }
  }
}

}  // namespace hanok::tokenizer_spec
