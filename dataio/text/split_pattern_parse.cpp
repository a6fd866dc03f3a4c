// Oniguruma's syntax (Ruby dialect), as far as tokenizers use it -> syntax text and character sets.
#include <algorithm>
#include <optional>

#include "base/error.h"
#include "dataio/text/split_pattern.h"

namespace hanok::split_pattern {
namespace {

constexpr size_t kMaxExpressionBytes = 16384;

Set one(char32_t c) {
  return {{c, c + 1}};
}

Set united(Set a, const Set& b) {
  a.insert(a.end(), b.begin(), b.end());
  std::sort(a.begin(), a.end(), [](const Range& x, const Range& y) { return x.first < y.first; });
  Set out;
  for (const Range& range : a) {
    if (!out.empty() && range.first <= out.back().end) {
      out.back().end = std::max(out.back().end, range.end);
    } else {
      out.push_back(range);
    }
  }
  return out;
}

Set complement(const Set& set) {
  Set out;
  char32_t begin = 0;
  for (const Range& range : set) {
    if (range.first > begin) out.push_back({begin, range.first});
    begin = range.end;
  }
  if (begin < unicode::kEnd) out.push_back({begin, unicode::kEnd});
  return out;
}

/// What an ASCII letter matches under (?i:...): U+017F folds to s, U+212A to k.
Set folded(char32_t c) {
  const char32_t lower = c | 0x20;
  if (lower < 'a' || lower > 'z') return one(c);
  Set out = united(one(lower), one(lower - 0x20));
  if (lower == 's') out = united(out, one(0x17F));
  if (lower == 'k') out = united(out, one(0x212A));
  return out;
}

class Parser {
 public:
  Parser(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  std::vector<Element> run() {
    HANOK_REQUIRE(text_.size() <= kMaxExpressionBytes, kData)
        << "split expression: got " << text_.size() << " bytes, expected at most " << kMaxExpressionBytes << "; "
        << where_;
    while (at_ < text_.size()) element();
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    HANOK_FAIL(kData) << "split expression: got " << what << " before byte " << at_
                      << ", expected syntax that this program understands; " << where_
                      << "; use the expression of a supported tokenizer (Qwen, GPT-2, Llama 3)";
  }

  bool take(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) return false;
    at_ += expected.size();
    return true;
  }
  char32_t take_character() {
    if (at_ >= text_.size()) refuse("the end of the expression");
    const char32_t c = unicode::decode(text_, at_);
    at_ += unicode::sequence_length(text_[at_]);
    return c;
  }
  void syntax(std::string text) {
    out_.push_back({.syntax = std::move(text)});
    last_literal_ = 0;
  }
  void set(Set value, bool negated = false) {
    if (value.empty()) refuse("a class without members");
    out_.push_back({.set = std::move(value), .negated = negated});
    last_literal_ = 0;
  }

  void element() {
    if (take("(")) return group();
    if (take(")")) {
      if (caseless_.size() == 1) refuse("')' without '('");
      caseless_.pop_back();
      return syntax(")");
    }
    if (take("|")) return syntax("|");
    if (take("[")) return bracket();
    if (take(".")) return set(one('\n'), true);
    if (take("\\")) return escape();
    if (take("^") || take("$")) return refuse("an anchor");
    if (take("*") || take("+") || take("?")) return quantifier(std::string(1, text_[at_ - 1]));
    if (take("{")) return interval();
    literal(take_character());
  }

  void group() {
    bool caseless = caseless_.back();
    if (take("?i:")) {
      caseless = true;
      syntax("(?:");
    } else if (take("?:") || !text_.substr(at_).starts_with("?")) {
      syntax("(?:");
    } else if (take("?=") || take("?!") || take("?>")) {
      syntax("(" + std::string(text_.substr(at_ - 2, 2)));
    } else if (take("?<=") || take("?<!")) {
      syntax("(" + std::string(text_.substr(at_ - 3, 3)));
    } else {
      refuse("a group of another kind");
    }
    caseless_.push_back(caseless);
  }

  /// After *, + or ?: a lazy '?' or a possessive '+' may follow.
  void quantifier(std::string text) {
    if (out_.empty() || out_.back().syntax == "(?:" || out_.back().syntax == "|") refuse("a quantifier of nothing");
    if (take("?") || take("+")) text += text_[at_ - 1];
    if (at_ < text_.size() && (text_[at_] == '*' || text_[at_] == '+' || text_[at_] == '?' || text_[at_] == '{')) {
      refuse("a quantifier of a quantifier");
    }
    syntax(std::move(text));
  }

  void interval() {
    const auto number = [&] {
      std::string digits;
      while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') digits += text_[at_++];
      if (digits.size() > 4) refuse("a repeat count above 9999");
      return digits;
    };
    const std::string low = number();
    const bool open = take(",");
    const std::string high = open ? number() : low;
    if ((low.empty() && high.empty()) || !take("}")) refuse("'{' that is no repeat count");
    const char next = at_ < text_.size() ? text_[at_] : '\0';
    if (next == '+' || next == '*' || next == '{' || (next == '?' && !open)) refuse("a quantifier of a quantifier");
    std::string text = "{" + (low.empty() ? "0" : low) + (open ? "," + high : "") + "}";
    if (take("?")) text += "?";
    syntax(std::move(text));
  }

  void literal(char32_t c) {
    if (!caseless_.back()) return set(one(c));
    if (c >= 0x80) refuse("a character beyond ASCII under (?i:");
    // Oniguruma folds one character to several as well (U+FB06 to "st"): such pairs would need a class of two letters.
    const char32_t lower = c >= 'A' && c <= 'Z' ? c | 0x20 : c;
    const char32_t before = last_literal_;
    const bool folds_together = (before == 's' && (lower == 's' || lower == 't')) ||
                                (before == 'f' && (lower == 'f' || lower == 'i' || lower == 'l'));
    if (folds_together) refuse("a pair of letters under (?i: that one character folds to");
    set(folded(c));
    last_literal_ = lower;
  }

  /// A class and whether its complement is meant.
  struct Class {
    Set set;
    bool negated;
  };

  /// The class of \s, \d, \p{...} (`at_` behind the letter), or nothing if the letter names no class.
  std::optional<Class> escaped_class(char32_t letter) {
    if (letter == 's' || letter == 'S') {
      const uint32_t separators = 1u << unicode::kZs | 1u << unicode::kZl | 1u << unicode::kZp;
      return Class{united(unicode::code_points(separators), {{'\t', '\r' + 1}, {0x85, 0x86}}), letter == 'S'};
    }
    if (letter == 'd' || letter == 'D') return Class{unicode::code_points(1u << unicode::kNd), letter == 'D'};
    if (letter == 'p' || letter == 'P') return property(letter == 'P');
    return std::nullopt;
  }

  Class property(bool negated) {
    const size_t end = text_.find('}', at_);
    if (!take("{") || end == std::string_view::npos) refuse("\\p without {name}");
    if (take("^")) negated = !negated;
    const std::string_view name = text_.substr(at_, end - at_);
    at_ = end + 1;
    const auto wanted = unicode::categories_named(name);
    if (wanted.empty()) refuse("a property that is no general category");
    uint32_t mask = 0;
    for (const unicode::Category c : wanted) mask |= 1u << c;
    return {unicode::code_points(mask), negated};
  }

  /// The character of an escape that stands for one (`at_` behind `letter`).
  char32_t escaped_character(char32_t letter) {
    switch (letter) {
      case 'n': return '\n';
      case 'r': return '\r';
      case 't': return '\t';
      case 'f': return '\f';
      case 'v': return '\v';
      case 'a': return '\a';
      case 'e': return 0x1B;
      case 'x': return take("{") ? hexadecimal(8, true) : hexadecimal(2, false);
      case 'u': return hexadecimal(4, false);
      default: break;
    }
    const bool word = letter >= 0x80 || (letter >= '0' && letter <= '9') || (letter >= 'a' && letter <= 'z') ||
                      (letter >= 'A' && letter <= 'Z');
    if (word) refuse("an escape that is not known");
    return letter;
  }

  char32_t hexadecimal(int max_digits, bool braced) {
    char32_t value = 0;
    int digits = 0;
    for (; digits < max_digits && at_ < text_.size(); ++digits, ++at_) {
      const char c = text_[at_];
      const int digit = c >= '0' && c <= '9'                     ? c - '0'
                        : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10
                                                                 : -1;
      if (digit < 0) break;
      value = value * 16 + static_cast<char32_t>(digit);
    }
    const bool complete = braced ? digits > 0 && take("}") : digits == max_digits;
    if (!complete || value >= unicode::kEnd || (value >= 0xD800 && value < 0xE000) ||
        (!braced && max_digits == 2 && value >= 0x80)) {
      refuse("an escape that is no code point");
    }
    return value;
  }

  void escape() {
    const char32_t letter = take_character();
    if (auto value = escaped_class(letter)) return set(std::move(value->set), value->negated);
    literal(escaped_character(letter));
  }

  void bracket() {
    if (caseless_.back()) refuse("a class under (?i:");
    const bool negated = take("^");
    Set members;
    bool first = true;
    while (!take("]")) {
      if (text_.substr(at_).starts_with("[") || text_.substr(at_).starts_with("&&")) refuse("a class within a class");
      char32_t low = take_character();
      if (low == '\\') {
        const char32_t letter = take_character();
        if (auto value = escaped_class(letter)) {
          members = united(std::move(members), value->negated ? complement(value->set) : value->set);
          first = false;
          continue;
        }
        low = escaped_character(letter);
      } else if (low == '-' && !first && !text_.substr(at_).starts_with("]")) {
        refuse("'-' in the middle of a class");
      }
      first = false;
      char32_t high = low;
      if (text_.substr(at_).starts_with("-") && !text_.substr(at_).starts_with("-]")) {
        take("-");
        high = take_character();
        if (high == '\\') high = escaped_character(take_character());
        if (high == '[') refuse("a class within a class");
      }
      if (high < low) refuse("a range that runs backwards");
      members = united(std::move(members), {{low, high + 1}});
    }
    set(std::move(members), negated);
  }

  std::string_view text_;
  const std::string& where_;
  size_t at_ = 0;
  std::vector<Element> out_;
  std::vector<bool> caseless_ = {false};
  char32_t last_literal_ = 0;  // for the pairs that fold together
};

}  // namespace

std::vector<Element> parse(std::string_view expression, const std::string& where) {
  return Parser(expression, where).run();
}

}  // namespace hanok::split_pattern
