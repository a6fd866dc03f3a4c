#include "dataio/text/added_tokens.h"

#include <algorithm>

#include "base/error.h"
#include "dataio/store/strict_json.h"
#include "dataio/text/unicode.h"

namespace hanok {
namespace {

size_t white_space_begin(std::string_view text, size_t end) {
  while (end > 0) {
    const size_t before = unicode::previous(text, end);
    if (!unicode::is_white_space(unicode::decode(text, before))) break;
    end = before;
  }
  return end;
}

size_t white_space_end(std::string_view text, size_t begin) {
  while (begin < text.size() && unicode::is_white_space(unicode::decode(text, begin))) {
    begin += unicode::sequence_length(text[begin]);
  }
  return begin;
}

}  // namespace

void AddedTokenMatcher::add(const AddedToken& token, std::string pattern, const std::string& where) {
  const size_t place = patterns_.insert(pattern);
  HANOK_REQUIRE(place == tokens_.size(), kData)
      << "added token " << shown(token.content) << ": another one has the same normalised text; " << where
      << "; remove one";
  tokens_.push_back({token.id, pattern.size(), token.single_word, token.lstrip, token.rstrip, token.special});
  auto& lengths = lengths_[static_cast<uint8_t>(pattern[0])];
  const auto size = static_cast<uint32_t>(pattern.size());
  const auto at = std::lower_bound(lengths.begin(), lengths.end(), size, std::greater<>());
  if (at == lengths.end() || *at != size) lengths.insert(at, size);
}

const AddedTokenMatcher::Token* AddedTokenMatcher::longest_at(std::string_view text, size_t at) const {
  for (const uint32_t length : lengths_[static_cast<uint8_t>(text[at])]) {
    if (length > text.size() - at) continue;
    if (const auto place = patterns_.find(text.substr(at, length))) return &tokens_[*place];
  }
  return nullptr;
}

void AddedTokenMatcher::cut(std::string_view text,
                            const std::function<size_t(size_t)>& is_literal,
                            std::vector<Piece>& pieces) const {
  size_t done = 0;  // bytes that pieces cover
  for (size_t at = 0; at < text.size();) {
    const Token* token = longest_at(text, at);
    if (!token) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + token->size;
    const size_t literal = token->special ? is_literal(begin) : 0;
    at = literal > 0 ? std::min(end, begin + literal) : end;
    if (literal > 0 || begin < done) continue;  // `done` is behind where an earlier token stripped white space
    if (token->single_word) {
      const bool word_before = begin > 0 && unicode::is_word(unicode::decode(text, unicode::previous(text, begin)));
      const bool word_after = end < text.size() && unicode::is_word(unicode::decode(text, end));
      if (word_before || word_after) continue;
    }
    if (token->lstrip) begin = std::max(white_space_begin(text, begin), done);
    if (token->rstrip) end = white_space_end(text, end);
    if (done < begin) pieces.push_back({done, begin, -1});
    pieces.push_back({begin, end, token->id});
    done = end;
  }
  if (done < text.size()) pieces.push_back({done, text.size(), -1});
}

}  // namespace hanok
