#include "dataio/text/unicode.h"

#include <utf8proc.h>

#include <array>
#include <cassert>
#include <cstring>

namespace hanok::unicode {
namespace {

struct Row {
  char32_t first;
  Category category;
  uint8_t nfc;
};
constexpr Row kRows[] = {
#include "dataio/text/unicode_table.inc"
};

// Parts played in NFC. A text changes only where a kMark follows something or stands alone.
constexpr uint8_t kBase = 1, kMark = 2;
constexpr int kCategoryBits = 5;

/// category | role << 5, one byte a code point.
const uint8_t* properties() {
  static const std::vector<uint8_t> table = [] {
    std::vector<uint8_t> out(kEnd);
    for (size_t i = 0; i < std::size(kRows); ++i) {
      const char32_t end = i + 1 < std::size(kRows) ? kRows[i + 1].first : kEnd;
      const auto value = static_cast<uint8_t>(kRows[i].category | kRows[i].nfc << kCategoryBits);
      std::fill(out.begin() + kRows[i].first, out.begin() + end, value);
    }
    return out;
  }();
  return table.data();
}

uint8_t nfc_role(char32_t code_point) {
  return properties()[code_point] >> kCategoryBits;
}

constexpr const char* kCategoryNames[] = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl",
                                          "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc",
                                          "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn"};

/// Bytes of the well-formed sequence at `at`, or minus the bytes of the maximal ill-formed part (Unicode 16.0, table
/// 3-7 and section 3.9, "U+FFFD Substitution of Maximal Subparts").
int scan_sequence(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return at + i < text.size() ? static_cast<uint8_t>(text[at + i]) : uint8_t{0}; };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return -1;
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (byte(1) < low || byte(1) > high) return -1;
  for (int i = 2; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return -i;
  }
  return length;
}

/// Length of the ASCII prefix at `at`.
size_t skip_ascii(std::string_view text, size_t at) {
  while (at + 8 <= text.size()) {
    uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    if (word & 0x8080808080808080u) break;
    at += 8;
  }
  while (at < text.size() && static_cast<uint8_t>(text[at]) < 0x80) ++at;
  return at;
}

/// Code points below U+0300 (lead bytes below 0xCC) never change under NFC by themselves or after one another.
size_t skip_unchanging(std::string_view text, size_t at) {
  while (at < text.size() && static_cast<uint8_t>(text[at]) < 0xCC) ++at;
  return at;
}

/// NFC of runs [base] mark+ by utf8proc, whose Unicode is newer: Unicode never changes the NFC of what it once
/// assigned.
class Composer {
 public:
  /// Appends the NFC of `run`.
  void compose(std::string_view run, std::string& out) {
    points_.clear();
    for (size_t at = 0; at < run.size(); at += sequence_length(run[at]))
      decompose(static_cast<int32_t>(decode(run, at)));
    // Sorted here: utf8proc_decompose's own ordering is quadratic, and a run may be as long as the text.
    for (auto first = points_.begin(); first != points_.end();) {
      const auto starter = [](int32_t c) { return combining_class(c) == 0; };
      first = std::find_if_not(first, points_.end(), starter);
      const auto last = std::find_if(first, points_.end(), starter);
      std::stable_sort(first, last, [](int32_t a, int32_t b) { return combining_class(a) < combining_class(b); });
      first = last;
    }
    const auto size = utf8proc_normalize_utf32(points_.data(), static_cast<utf8proc_ssize_t>(points_.size()), kOptions);
    assert(size >= 0);
    for (utf8proc_ssize_t i = 0; i < size; ++i) append(out, static_cast<char32_t>(points_[i]));
  }

 private:
  static constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  static int combining_class(int32_t c) { return utf8proc_get_property(c)->combining_class; }

  void decompose(int32_t c) {
    std::array<int32_t, 8> parts;  // a canonical decomposition has at most four code points
    int unused = 0;
    const auto size = utf8proc_decompose_char(c, parts.data(), parts.size(), kOptions, &unused);
    assert(size >= 1 && size <= static_cast<utf8proc_ssize_t>(parts.size()));
    points_.insert(points_.end(), parts.begin(), parts.begin() + size);
  }
  std::vector<int32_t> points_;
};

}  // namespace

Category category(char32_t code_point) {
  assert(code_point < kEnd);
  return static_cast<Category>(properties()[code_point] & ((1 << kCategoryBits) - 1));
}

std::vector<Category> categories_named(std::string_view name) {
  std::vector<Category> out;
  for (size_t i = 0; i < std::size(kCategoryNames); ++i) {
    if (name == kCategoryNames[i] || name == std::string_view(kCategoryNames[i], 1)) {
      out.push_back(static_cast<Category>(i));
    }
  }
  return out;
}

std::vector<Range> code_points(uint32_t mask) {
  std::vector<Range> out;
  for (size_t i = 0; i < std::size(kRows); ++i) {
    if ((mask >> kRows[i].category & 1) == 0) continue;
    const char32_t end = i + 1 < std::size(kRows) ? kRows[i + 1].first : kEnd;
    if (!out.empty() && out.back().end == kRows[i].first) {
      out.back().end = end;
    } else {
      out.push_back({kRows[i].first, end});
    }
  }
  return out;
}

bool is_white_space(char32_t code_point) {
  if (code_point < 0x80) return code_point == ' ' || (code_point >= 9 && code_point <= 13);
  const Category c = category(code_point);
  return c == kZs || c == kZl || c == kZp || code_point == 0x85;
}

bool is_word(char32_t code_point) {
  const Category c = category(code_point);
  if (c <= kNl || c == kPc) return true;
  const bool circled =
      (code_point >= 0x24B6 && code_point <= 0x24E9) || (code_point >= 0x1F130 && code_point <= 0x1F149) ||
      (code_point >= 0x1F150 && code_point <= 0x1F169) || (code_point >= 0x1F170 && code_point <= 0x1F189);
  return circled || code_point == 0x200C || code_point == 0x200D;
}

char32_t decode(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<uint8_t>(text[at + i])); };
  switch (sequence_length(text[at])) {
    case 1: return byte(0);
    case 2: return (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F);
    case 3: return (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    default: return (byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
  }
}

size_t previous(std::string_view text, size_t end) {
  do --end;
  while ((static_cast<uint8_t>(text[end]) & 0xC0) == 0x80);
  return end;
}

void append(std::string& out, char32_t c) {
  const auto put = [&](char32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6), put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18), put(0x80 | (c >> 12 & 0x3F)), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
  }
}

std::string beginning(std::string_view text, size_t most_bytes) {
  size_t size = std::min(text.size(), most_bytes);
  while (size > 0 && size < text.size() && (text[size] & 0xC0) == 0x80) --size;
  return std::string(text.substr(0, size));
}

Span OffsetMap::original(Span output) const {
  const auto map = [&](int64_t position, bool is_end) {
    // The last run that begins before the position (at it, for a beginning).
    auto run = std::partition_point(runs_.begin(), runs_.end(), [&](const Run& r) {
      return is_end ? r.output.begin < position : r.output.begin <= position;
    });
    if (run == runs_.begin()) return position;
    --run;
    if (is_end ? position <= run->output.end : position < run->output.end) {
      return is_end ? run->input.end : run->input.begin;
    }
    return position - run->output.end + run->input.end;
  };
  const int64_t begin = map(output.begin, false);
  return {begin, output.begin == output.end ? begin : map(output.end, true)};
}

bool replace_invalid(std::string_view text, std::string& out, OffsetMap& map) {
  bool changed = false;
  size_t copied = 0;
  for (size_t at = skip_ascii(text, 0); at < text.size(); at = skip_ascii(text, at)) {
    const int length = scan_sequence(text, at);
    if (length < 0) {
      if (!changed) out.clear(), map.clear(), changed = true;
      out.append(text, copied, at - copied);
      const auto begin = static_cast<int64_t>(out.size()), from = static_cast<int64_t>(at);
      append(out, 0xFFFD);
      map.replaced({begin, begin + 3}, {from, from - length});
      copied = at - length;
    }
    at += std::abs(length);
  }
  if (changed) out.append(text, copied);
  return changed;
}

bool normalize_nfc(std::string_view text, std::string& out, OffsetMap& map) {
  bool changed = false;
  size_t copied = 0;  // input bytes that `out` covers
  Composer composer;
  std::string composed;
  for (size_t at = skip_unchanging(text, 0); at < text.size(); at = skip_unchanging(text, at)) {
    const size_t mark = at;
    if (nfc_role(decode(text, at)) != kMark) {
      at += sequence_length(text[at]);
      continue;
    }
    size_t begin = mark;
    if (mark > copied) {
      const size_t before = previous(text, mark);
      if (nfc_role(decode(text, before)) == kBase) begin = before;
    }
    while (at < text.size() && nfc_role(decode(text, at)) == kMark) at += sequence_length(text[at]);
    const std::string_view run = text.substr(begin, at - begin);
    composed.clear();
    composer.compose(run, composed);
    if (composed == run) continue;
    if (!changed) out.clear(), map.clear(), changed = true;
    out.append(text, copied, begin - copied);
    const auto output = static_cast<int64_t>(out.size());
    map.replaced({output, output + static_cast<int64_t>(composed.size())},
                 {static_cast<int64_t>(begin), static_cast<int64_t>(at)});
    out += composed;
    copied = at;
  }
  if (changed) out.append(text, copied);
  return changed;
}

}  // namespace hanok::unicode
