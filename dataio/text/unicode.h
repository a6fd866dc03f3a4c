// Characters as the Hugging Face tokenizers library sees them. Its Unicode versions are its own (16.0 for classes, 9.0
// for NFC), so they come from unicode_table.inc, and no result depends on the PCRE2 or utf8proc of the machine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dataio/tokenizer.h"

namespace hanok::unicode {

inline constexpr char32_t kEnd = 0x110000;  // one past the last code point

enum Category : uint8_t {
  kLu,
  kLl,
  kLt,
  kLm,
  kLo,
  kMn,
  kMc,
  kMe,
  kNd,
  kNl,
  kNo,
  kPc,
  kPd,
  kPs,
  kPe,
  kPi,
  kPf,
  kPo,
  kSm,
  kSc,
  kSk,
  kSo,
  kZs,
  kZl,
  kZp,
  kCc,
  kCf,
  kCs,
  kCo,
  kCn,
};
Category category(char32_t code_point);
/// The categories of a regex property name: "Lu" is one, "L" five. Empty if the name is no general category.
std::vector<Category> categories_named(std::string_view name);
/// Code points as sorted, disjoint ranges [first, end).
struct Range {
  char32_t first, end;
};
/// The code points whose category c has bit 1 << c in `mask`.
std::vector<Range> code_points(uint32_t mask);
bool is_white_space(char32_t code_point);
/// A character beside which a `single_word` added token is part of a larger word.
bool is_word(char32_t code_point);

/// Bytes of the UTF-8 sequence that begins with `lead`; the text is known to be valid.
inline int sequence_length(char lead) {
  const auto byte = static_cast<uint8_t>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}
/// The code point at `at` of valid UTF-8.
char32_t decode(std::string_view text, size_t at);
/// Where the code point that ends at `end` begins, in valid UTF-8; end > 0.
size_t previous(std::string_view text, size_t end);
void append(std::string& out, char32_t code_point);
/// The first characters that fit into `most_bytes`, for messages: not cut within one.
std::string beginning(std::string_view text, size_t most_bytes);

/// Where the bytes of a rewritten text come from: runs that were replaced, everything between them moved unchanged.
class OffsetMap {
 public:
  void clear() { runs_.clear(); }
  void replaced(Span output, Span input) { runs_.push_back({output, input}); }
  /// A stretch of the rewritten text -> the stretch of the original; a replaced run counts whole.
  Span original(Span output) const;

 private:
  struct Run {
    Span output, input;
  };
  int64_t shift_before(const Run* run) const;
  std::vector<Run> runs_;
};

/// Invalid UTF-8 becomes U+FFFD, one for each maximal part of a sequence, as Rust's from_utf8_lossy does. False (and
/// `out` untouched) if the text is valid as it is; else `out` is overwritten and `map` tells where it came from.
bool replace_invalid(std::string_view text, std::string& out, OffsetMap& map);
/// NFC of valid UTF-8. False (and `out` untouched) if nothing changes.
bool normalize_nfc(std::string_view text, std::string& out, OffsetMap& map);

}  // namespace hanok::unicode
