#include "dataio/text/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>

#include "base/error.h"
#include "dataio/text/unicode.h"

namespace hanok {
namespace {

using split_pattern::Element;
using split_pattern::Set;

constexpr int kMaxKinds = 256;
constexpr size_t kMaxCharacters = 32 << 20;  // of all sets together; Qwen's expression has less than one million
constexpr size_t kJitStackStart = 32 << 10, kJitStackLimit = 8 << 20;

struct CodeFree {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
};
struct MatchFree {
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
};
struct ContextFree {
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
};
struct StackFree {
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};

std::string pcre2_text(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

/// The coarsest division of all code points in which each set is a union of kinds; `kind` is indexed by code point.
int divide(const std::vector<Element>& elements, std::vector<uint8_t>& kind, const std::string& where) {
  int count = 1;
  size_t num_characters = 0;
  for (const Element& element : elements) {
    for (const auto& range : element.set) num_characters += range.end - range.first;
    HANOK_REQUIRE(num_characters <= kMaxCharacters, kData)
        << "split expression: got classes of more than " << kMaxCharacters << " characters in all; " << where
        << "; use the expression of a supported tokenizer";
    std::array<int, kMaxKinds> moved;
    moved.fill(-1);
    for (const auto& range : element.set) {
      for (char32_t c = range.first; c < range.end; ++c) {
        int& to = moved[kind[c]];
        if (to < 0) {
          HANOK_REQUIRE(count < kMaxKinds, kData)
              << "split expression: got more than " << kMaxKinds << " kinds of characters; " << where
              << "; use the expression of a supported tokenizer";
          to = count++;
        }
        kind[c] = static_cast<uint8_t>(to);
      }
    }
  }
  return count;
}

/// [\x01\x05]: the kinds of a set.
std::string kinds_of(const Element& element, const std::vector<uint8_t>& kind, int count) {
  std::array<bool, kMaxKinds> member{};
  for (const auto& range : element.set) {
    for (char32_t c = range.first; c < range.end; ++c) member[kind[c]] = true;
  }
  const char* digits = "0123456789ABCDEF";
  std::string out = "[";
  for (int i = 0; i < count; ++i) {
    if (member[i] == element.negated) continue;
    out += "\\x";
    out += digits[i / 16];
    out += digits[i % 16];
  }
  if (out == "[") return "(*FAIL)";  // [^...] of everything
  return out + "]";
}

}  // namespace

struct SplitPattern::State {
  std::vector<uint8_t> kind = std::vector<uint8_t>(unicode::kEnd);
  std::unique_ptr<pcre2_code, CodeFree> code;
  std::string where;
};

struct SplitPattern::Scratch::State {
  std::unique_ptr<pcre2_match_data, MatchFree> match{pcre2_match_data_create(1, nullptr)};
  std::unique_ptr<pcre2_jit_stack, StackFree> stack{pcre2_jit_stack_create(kJitStackStart, kJitStackLimit, nullptr)};
  std::unique_ptr<pcre2_match_context, ContextFree> context{pcre2_match_context_create(nullptr)};
  std::string kinds;

  State() {
    if (!match || !context) throw std::bad_alloc();
    if (stack) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());  // null where PCRE2 has no JIT
  }
};

SplitPattern::Scratch::Scratch() : state_(std::make_unique<State>()) {}
SplitPattern::Scratch::~Scratch() = default;
SplitPattern::Scratch::Scratch(Scratch&&) noexcept = default;
SplitPattern::~SplitPattern() = default;
SplitPattern::SplitPattern(SplitPattern&&) noexcept = default;
SplitPattern& SplitPattern::operator=(SplitPattern&&) noexcept = default;

SplitPattern::SplitPattern(std::string_view expression, const std::string& where) : state_(std::make_unique<State>()) {
  state_->where = where;
  const std::vector<Element> elements = split_pattern::parse(expression, where);
  const int count = divide(elements, state_->kind, where);
  std::string rewritten;
  for (const Element& e : elements) rewritten += e.set.empty() ? e.syntax : kinds_of(e, state_->kind, count);

  int error = 0;
  size_t offset = 0;
  state_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(rewritten.data()),
                                   rewritten.size(),
                                   PCRE2_NO_AUTO_CAPTURE | PCRE2_DOTALL,
                                   &error,
                                   &offset,
                                   nullptr));
  HANOK_REQUIRE(state_->code, kData) << "split expression: PCRE2 refuses it (" << pcre2_text(error) << "); " << where;
  uint32_t matches_nothing = 0;
  pcre2_pattern_info(state_->code.get(), PCRE2_INFO_MATCHEMPTY, &matches_nothing);
  HANOK_REQUIRE(!matches_nothing, kData) << "split expression: it can match the empty text; " << where
                                         << "; use the expression of a supported tokenizer";
  pcre2_jit_compile(state_->code.get(), PCRE2_JIT_COMPLETE);  // where it fails, pcre2_match interprets
}

void SplitPattern::split(std::string_view text, Scratch& scratch, std::vector<size_t>& ends) const {
  auto& s = *scratch.state_;
  s.kinds.resize(text.size());
  size_t count = 0;
  for (size_t at = 0; at < text.size(); at += unicode::sequence_length(text[at])) {
    s.kinds[count++] = static_cast<char>(state_->kind[unicode::decode(text, at)]);
  }
  s.kinds.resize(count);
  const bool ascii = count == text.size();
  size_t position = 0, byte = 0;  // of the last end, in code points and in bytes
  const auto emit = [&](size_t end) {
    if (ascii) {
      byte = end;
    } else {
      for (; position < end; ++position) byte += unicode::sequence_length(text[byte]);
    }
    position = end;
    ends.push_back(byte);
  };
  const size_t* matched = pcre2_get_ovector_pointer(s.match.get());
  while (position < s.kinds.size()) {
    const int result = pcre2_match(state_->code.get(),
                                   reinterpret_cast<PCRE2_SPTR>(s.kinds.data()),
                                   s.kinds.size(),
                                   position,
                                   0,
                                   s.match.get(),
                                   s.context.get());
    if (result == PCRE2_ERROR_NOMATCH) break;
    HANOK_REQUIRE(result >= 0, kData) << "split expression: gave up on a text (" << pcre2_text(result) << "); "
                                      << state_->where << "; simplify its nested repeats";
    const size_t end = matched[1];
    if (matched[0] > position) emit(matched[0]);
    emit(end);
  }
  if (position < s.kinds.size()) emit(s.kinds.size());
}

}  // namespace hanok
