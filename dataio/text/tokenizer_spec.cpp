#include "dataio/text/tokenizer_spec.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "dataio/file_io.h"
#include "dataio/store/json_stream.h"
#include "dataio/store/strict_json.h"
#include "dataio/text/unicode.h"

namespace hanok {
namespace {

using nlohmann::json;

constexpr char kQwen2Expression[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
constexpr char kGpt2Expression[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
constexpr size_t kMaxSplits = 16;  // each costs a table of all code points; published tokenizers have at most three
constexpr char kAdvice[] = "; use the tokenizer files of a Qwen model";

/// A value as a message shows it.
std::string brief(const json& value) {
  return value.is_string() ? shown(value.get_ref<const std::string&>()) : shown(value.dump().substr(0, 100));
}

/// A member, or null if absent. errors: kData if `object` is no object
const json& member(const json& object, const char* key, const std::string& where) {
  static const json null;
  HANOK_REQUIRE(object.is_object(), kData) << where << ": got a " << object.type_name() << ", expected an object";
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

std::string type_of(const json& object, const std::string& where) {
  const json& type = member(object, "type", where);
  HANOK_REQUIRE(type.is_string(), kData) << where << ".type: got " << brief(type) << ", expected a name";
  return type.get<std::string>();
}

bool flag(const json& object, const char* key, bool absent, const std::string& where) {
  const json& value = member(object, key, where);
  if (value.is_null()) return absent;
  HANOK_REQUIRE(value.is_boolean(), kData)
      << where << "." << key << ": got a " << value.type_name() << ", expected true or false";
  return value.get<bool>();
}

[[noreturn]] void refuse(const std::string& where, const json& got, const char* expected) {
  HANOK_FAIL(kData) << where << ": got " << brief(got) << ", expected " << expected << kAdvice;
}

/// Merges as they are written, kept until the whole vocabulary is known.
class MergeList {
 public:
  void add(std::string_view left, std::string_view right) {
    merges_.push_back({text_.size(), left.size(), right.size()});
    text_ += left;
    text_ += right;
  }
  /// "left right". errors: kData
  void add_line(std::string_view line, const std::string& where) {
    if (line.starts_with("#version")) return;
    const size_t space = line.find(' ');
    HANOK_REQUIRE(space != std::string_view::npos && line.find(' ', space + 1) == std::string_view::npos, kData)
        << "merge " << merges_.size() + 1 << ": got " << shown(line) << ", expected two tokens and one space; "
        << where;
    add(line.substr(0, space), line.substr(space + 1));
  }
  void resolve(TokenizerSpec& spec) const {
    for (const Entry& m : merges_) {
      const auto id = [&](size_t begin, size_t size) {
        const std::string_view token = std::string_view(text_).substr(begin, size);
        const auto place = spec.vocabulary.find(token);
        HANOK_REQUIRE(place, kData) << "merge " << spec.merges.size() + 1 << ": token " << shown(token)
                                    << " is not in the vocabulary; " << spec.where << kAdvice;
        return spec.ids[*place];
      };
      spec.merges.push_back({id(m.begin, m.left), id(m.begin + m.left, m.right), id(m.begin, m.left + m.right)});
    }
  }

 private:
  struct Entry {
    size_t begin, left, right;
  };
  std::string text_;
  std::vector<Entry> merges_;
};

void add_vocabulary(TokenizerSpec& spec, const std::string& token, const json& id) {
  HANOK_REQUIRE(id.is_number_unsigned() && id.get<uint64_t>() < INT32_MAX, kData)
      << "vocabulary token " << shown(token) << ": got id " << brief(id) << ", expected 0 to 2147483646; "
      << spec.where;
  const size_t place = spec.vocabulary.insert(token);
  spec.ids.resize(spec.vocabulary.size());
  spec.ids[place] = id.get<int32_t>();  // a token given twice keeps its last id
}

AddedToken added_token(const json& value, const std::string& where) {
  const json& content = member(value, "content", where);
  HANOK_REQUIRE(content.is_string(), kData) << where << ".content: got a " << content.type_name() << ", expected text";
  const bool special = flag(value, "special", false, where);
  AddedToken token{.content = content.get<std::string>(),
                   .single_word = flag(value, "single_word", false, where),
                   .lstrip = flag(value, "lstrip", false, where),
                   .rstrip = flag(value, "rstrip", false, where),
                   .normalized = flag(value, "normalized", !special, where),
                   .special = special};
  const json& id = member(value, "id", where);
  if (!id.is_null()) {
    HANOK_REQUIRE(id.is_number_unsigned() && id.get<uint64_t>() < INT32_MAX, kData)
        << where << ".id: got " << brief(id) << ", expected 0 to 2147483646";
    token.id = id.get<int32_t>();
  }
  return token;
}

void read_normalizer(TokenizerSpec& spec, const json& value, const std::string& where, int depth) {
  if (value.is_null()) return;
  const std::string type = type_of(value, where);
  if (type == "NFC") {
    spec.nfc = true;
  } else if (type == "Sequence" && depth == 0) {
    const json& list = member(value, "normalizers", where);
    HANOK_REQUIRE(list.is_array(), kData) << where << ".normalizers: got a " << list.type_name() << ", expected a list";
    for (const json& item : list) read_normalizer(spec, item, where + ".normalizers", 1);
  } else {
    refuse(where + ".type", type, "NFC or nothing");
  }
}

void read_split(TokenizerSpec& spec, const json& value, const std::string& where) {
  const json& expression = member(member(value, "pattern", where), "Regex", where + ".pattern");
  HANOK_REQUIRE(expression.is_string(), kData)
      << where << ".pattern.Regex: got a " << expression.type_name() << ", expected text" << kAdvice;
  const json& behavior = member(value, "behavior", where);
  if (behavior != "Isolated") refuse(where + ".behavior", behavior, "Isolated");
  if (flag(value, "invert", false, where)) refuse(where + ".invert", true, "false");
  spec.patterns.push_back(expression.get<std::string>());
}

void read_pre_tokenizer(TokenizerSpec& spec, const json& value, const std::string& where) {
  const std::string type = type_of(value, where);
  std::vector<const json*> steps = {&value};
  if (type == "Sequence") {
    steps.clear();
    const json& list = member(value, "pretokenizers", where);
    HANOK_REQUIRE(list.is_array(), kData)
        << where << ".pretokenizers: got a " << list.type_name() << ", expected a list";
    for (const json& item : list) steps.push_back(&item);
  }
  for (size_t i = 0; i < steps.size(); ++i) {
    const std::string here = type == "Sequence" ? concat(where, ".pretokenizers[", i, "]") : where;
    const std::string step = type_of(*steps[i], here);
    const bool is_last = i + 1 == steps.size();
    if (step == "ByteLevel" && is_last) {
      if (flag(*steps[i], "add_prefix_space", true, here)) refuse(here + ".add_prefix_space", true, "false");
      if (flag(*steps[i], "use_regex", true, here)) spec.patterns.emplace_back(kGpt2Expression);
      return;
    }
    if (step != "Split" || is_last) refuse(here + ".type", step, is_last ? "ByteLevel as the last step" : "Split");
    if (i == kMaxSplits) refuse(where, concat(steps.size(), " steps"), "at most 16 of type Split");
    read_split(spec, *steps[i], here);
  }
  refuse(where, "no step", "ByteLevel as the last step");
}

void check_model(TokenizerSpec& spec, const json& model, const std::string& where) {
  const json& type = member(model, "type", where);
  if (!type.is_null() && type != "BPE") refuse(where + ".type", type, "BPE");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const json& value = member(model, key, where);
    if (!value.is_null() && value != "") refuse(where + "." + key, value, "nothing");
  }
  const json& dropout = member(model, "dropout", where);
  if (!dropout.is_null() && dropout != 0.0) refuse(where + ".dropout", dropout, "none");
  if (flag(model, "byte_fallback", false, where)) refuse(where + ".byte_fallback", true, "false");
  spec.ignore_merges = flag(model, "ignore_merges", false, where);
  if (member(model, "unk_token", where).is_null()) return;
  for (int b = 0; b < 256; ++b) {  // with all bytes in the vocabulary the unknown token is never used
    std::string text;
    unicode::append(text, byte_alphabet::character(static_cast<uint8_t>(b)));
    if (!spec.vocabulary.find(text))
      refuse(where + ".unk_token", concat("a token, and no token for byte ", b), "all 256 bytes");
  }
}

TokenizerSpec read_tokenizer_json(const std::string& folder, const std::string& path) {
  TokenizerSpec spec;
  spec.where = path;
  MergeList merges;
  std::vector<AddedToken> added;
  const auto add_merge = [&](const std::string&, json& value) {
    if (value.is_string()) return merges.add_line(value.get_ref<const std::string&>(), path);
    HANOK_REQUIRE(value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string(), kData)
        << "key model.merges: got " << brief(value) << ", expected two tokens; " << path;
    merges.add(value[0].get_ref<const std::string&>(), value[1].get_ref<const std::string&>());
  };
  const json root = read_json(
      read_file(path),
      path,
      {{"model.vocab", [&](const std::string& token, json& id) { add_vocabulary(spec, token, id); }},
       {"model.merges", add_merge},
       {"added_tokens",
        [&](const std::string&, json& value) { added.push_back(added_token(value, path + ": added_tokens")); }}});
  const auto here = [&](const char* key) { return path + ": " + key; };
  const json& version = member(root, "version", path);
  if (!version.is_null() && version != "1.0") refuse(here("version"), version, "1.0");
  read_normalizer(spec, member(root, "normalizer", path), here("normalizer"), 0);
  read_pre_tokenizer(spec, member(root, "pre_tokenizer", path), here("pre_tokenizer"));
  const std::string decoder = type_of(member(root, "decoder", path), here("decoder"));
  if (decoder != "ByteLevel") refuse(here("decoder.type"), decoder, "ByteLevel");
  check_model(spec, member(root, "model", path), here("model"));
  HANOK_REQUIRE(spec.vocabulary.size() > 0, kData)
      << here("model.vocab") << ": got nothing, expected tokens" << kAdvice;
  merges.resolve(spec);
  tokenizer_spec::add_tokens(spec, added, path);
  // Named by the config and unknown to tokenizer.json: transformers adds them when it loads the folder.
  std::vector<AddedToken> missing;
  for (AddedToken& token : tokenizer_spec::configured_tokens(folder, /*defaults=*/false)) {
    const auto same = [&](const AddedToken& known) { return known.content == token.content; };
    if (std::none_of(spec.added.begin(), spec.added.end(), same)) missing.push_back(std::move(token));
  }
  tokenizer_spec::add_tokens(spec, missing, folder + "/tokenizer_config.json");
  return spec;
}

TokenizerSpec read_vocabulary_and_merges(const std::string& folder, const std::string& path) {
  TokenizerSpec spec;
  spec.where = path;
  read_json(
      read_file(path), path, {{"", [&](const std::string& token, json& id) { add_vocabulary(spec, token, id); }}});
  HANOK_REQUIRE(spec.vocabulary.size() > 0, kData) << path << ": got nothing, expected tokens" << kAdvice;
  spec.nfc = true;
  spec.patterns = {kQwen2Expression};

  const std::string merges_path = folder + "/merges.txt", text = read_file(merges_path);
  MergeList merges;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = std::string_view(text).substr(at, end - at);
    if (line.ends_with('\r')) line.remove_suffix(1);
    at = end + 1;
    if (line.empty() && at >= text.size()) break;
    merges.add_line(line, merges_path);
  }
  merges.resolve(spec);
  tokenizer_spec::add_tokens(
      spec, tokenizer_spec::configured_tokens(folder, /*defaults=*/true), folder + "/tokenizer_config.json");
  return spec;
}

}  // namespace

TokenizerSpec read_tokenizer_spec(const std::string& folder) {
  const auto present = [&](const char* name) {
    std::error_code ignored;  // what cannot be seen is reported as missing
    return std::filesystem::exists(folder + "/" + name, ignored);
  };
  if (present("tokenizer.json")) return read_tokenizer_json(folder, folder + "/tokenizer.json");
  HANOK_REQUIRE(present("vocab.json") && present("merges.txt"), kData)
      << "tokenizer: got neither tokenizer.json nor vocab.json + merges.txt, expected one of them; " << folder
      << "; copy the tokenizer files of the model there";
  return read_vocabulary_and_merges(folder, folder + "/vocab.json");
}

}  // namespace hanok
