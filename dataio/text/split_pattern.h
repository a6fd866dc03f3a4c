// The regular expression by which a tokenizer cuts text into words.
//
// Such expressions are written for Oniguruma and its Unicode tables. So the text is not given to PCRE2 as it is: every
// code point is first replaced by one byte that says which of the expression's own characters and classes it belongs to
// (the Qwen expression tells 20 kinds apart), and the expression is rewritten over those bytes. The classes are then
// the same with any PCRE2, and the compiled code works on bytes with bitmaps.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dataio/text/unicode.h"

namespace hanok {

/// Immutable; any number of threads may split at once, each with its own Scratch.
class SplitPattern {
 public:
  /// Understood: literals, escapes, [...] with ranges, \p{general category}, \s \S \d \D, '.', groups, (?i:...) over
  /// ASCII letters, alternation, lookaround, greedy, lazy and possessive quantifiers.
  /// errors: kData naming `where` and the position of what is not understood, or an expression that can match nothing
  SplitPattern(std::string_view expression, const std::string& where);
  ~SplitPattern();
  SplitPattern(SplitPattern&&) noexcept;
  SplitPattern& operator=(SplitPattern&&) noexcept;

  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(Scratch&&) noexcept;

   private:
    friend class SplitPattern;
    struct State;
    std::unique_ptr<State> state_;
  };

  /// Appends the end of every piece of `text` (valid UTF-8) to `ends`: matches, and what lies between them.
  /// errors: kData if the expression gives up on the text (nested repeats)
  void split(std::string_view text, Scratch& scratch, std::vector<size_t>& ends) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

namespace split_pattern {
using unicode::Range;
using Set = std::vector<Range>;

/// One symbol of the rewritten expression: text for PCRE2, or a set of characters.
struct Element {
  std::string syntax;  // used if `set` is empty
  Set set;
  bool negated = false;
};
/// errors: kData
std::vector<Element> parse(std::string_view expression, const std::string& where);
}  // namespace split_pattern

}  // namespace hanok
