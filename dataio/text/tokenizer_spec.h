// What the tokenizer files of a folder say, checked and without their dialects.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "dataio/text/bpe.h"

namespace hanok {

/// A token that is cut out of the text before anything else happens to it.
struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool single_word = false, lstrip = false, rstrip = false, normalized = true, special = false;
  friend bool operator==(const AddedToken&, const AddedToken&) = default;
};

struct TokenizerSpec {
  TextTable vocabulary;               // texts in the byte alphabet
  std::vector<int32_t> ids;           // of the vocabulary's texts
  std::vector<BpeMerge> merges;       // in order of rank
  std::vector<AddedToken> added;      // ids resolved, contents distinct
  std::vector<std::string> patterns;  // the split expressions, applied one after another
  bool nfc = false;
  bool ignore_merges = false;  // a word that is a token is not merged
  std::string where;           // the file, for messages
};

/// Reads tokenizer.json, else vocab.json + merges.txt (Qwen2's expression and NFC), and the added tokens of
/// tokenizer_config.json, special_tokens_map.json and added_tokens.json, as transformers 5 does.
/// errors: kData naming file and key for what is missing, contradictory or not understood; kIo
TokenizerSpec read_tokenizer_spec(const std::string& folder);

namespace tokenizer_spec {
/// Adds `tokens` in order, as tokenizers' add_tokens: a text that is known keeps its id and takes the new flags,
/// another one takes the next free id. errors: kData if a token's own id (>= 0) is not the one it gets
void add_tokens(TokenizerSpec& spec, const std::vector<AddedToken>& tokens, const std::string& where);
/// Added tokens of the config files beside the tokenizer. `defaults`: without files, Qwen2Tokenizer's own names count.
std::vector<AddedToken> configured_tokens(const std::string& folder, bool defaults);
}  // namespace tokenizer_spec

}  // namespace hanok
