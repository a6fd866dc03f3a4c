// Finds added tokens in a text, as tokenizers' AddedVocabulary does.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "dataio/text/tokenizer_spec.h"

namespace hanok {

/// Leftmost, longest matches of a set of texts; then single_word, lstrip and rstrip. Immutable.
class AddedTokenMatcher {
 public:
  /// `pattern` is what is looked for: the content, or its normalised form.
  /// errors: kData if two tokens have the same pattern
  void add(const AddedToken& token, std::string pattern, const std::string& where);
  bool empty() const { return tokens_.empty(); }

  /// A stretch of the text: a token, or text between tokens (id < 0). Stripped white space belongs to the token.
  struct Piece {
    size_t begin, end;
    int32_t id;
  };
  /// Cuts `text` into pieces. A special token that begins where `is_literal(position)` gives n > 0 is not one there,
  /// and the search goes on behind it, but at most n bytes further.
  void cut(std::string_view text, const std::function<size_t(size_t)>& is_literal, std::vector<Piece>& pieces) const;

 private:
  struct Token {
    int32_t id;
    size_t size;  // of the pattern
    bool single_word, lstrip, rstrip, special;
  };
  const Token* longest_at(std::string_view text, size_t at) const;

  TextTable patterns_;
  std::vector<Token> tokens_;                       // in the order of patterns_
  std::array<std::vector<uint32_t>, 256> lengths_;  // of the patterns that begin with a byte, longest first
};

}  // namespace hanok
