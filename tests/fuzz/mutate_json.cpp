// Mutations of JSON text by its structure. The text need not be valid: what is left of the structure is used.
#include <algorithm>

#include "tests/fuzz/fuzz.h"

namespace hanok::fuzz {
namespace {

struct Stretch {
  size_t begin = 0, end = 0;
};

struct Outline {
  std::vector<Stretch> values;   // scalars and containers, keys left out
  std::vector<Stretch> strings;  // with their quotes, keys included
  std::vector<Stretch> numbers;
  std::vector<Stretch> members;  // of objects ("key": value) and lists, without commas
};

bool is_scalar_byte(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || c == '-' || c == '+' || c == '.' || c == 'E';
}

Outline outline(std::string_view text) {
  Outline out;
  struct Open {
    size_t begin, member;
  };
  std::vector<Open> open;
  const auto end_member = [&](size_t at) {
    if (open.empty()) return;
    size_t begin = open.back().member;
    while (begin < at && (text[begin] == ' ' || text[begin] == '\n' || text[begin] == '\t')) ++begin;
    if (begin < at) out.members.push_back({begin, at});
    open.back().member = at + 1;
  };
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    if (c == '"') {
      size_t end = at + 1;
      while (end < text.size() && text[end] != '"') end += text[end] == '\\' ? 2 : 1;
      end = std::min(end + 1, text.size());
      out.strings.push_back({at, end});
      size_t next = end;
      while (next < text.size() && text[next] == ' ') ++next;
      if (next >= text.size() || text[next] != ':') out.values.push_back({at, end});
      at = end;
    } else if (is_scalar_byte(c)) {
      size_t end = at;
      while (end < text.size() && is_scalar_byte(text[end])) ++end;
      out.values.push_back({at, end});
      if (c == '-' || (c >= '0' && c <= '9')) out.numbers.push_back({at, end});
      at = end;
    } else {
      if (c == '{' || c == '[') {
        open.push_back({at, at + 1});
      } else if (c == ',') {
        end_member(at);
      } else if ((c == '}' || c == ']') && !open.empty()) {
        end_member(at);
        out.values.push_back({open.back().begin, at + 1});
        open.pop_back();
      }
      ++at;
    }
  }
  return out;
}

std::string_view view(std::string_view text, Stretch s) {
  return text.substr(s.begin, s.end - s.begin);
}

/// `value` within many levels of lists or objects.
std::string nested(std::string_view value, Random& random) {
  const size_t levels = random.one_in(8) ? 300 + random.below(3000) : random.few(80);
  const bool closes = !random.one_in(4);
  std::string before, after;
  for (size_t i = 0; i < levels; ++i) {
    const bool is_list = random.one_in(2);
    before += is_list ? "[" : "{\"a\":";
    after += is_list ? ']' : '}';
  }
  std::reverse(after.begin(), after.end());
  return before + std::string(value) + (closes ? after : "");
}

std::string odd_string(std::string_view value, Random& random) {
  static const std::vector<std::string> kTexts = {"\"\"",
                                                  "\"\\u0000\"",
                                                  "\"\\ud800\"",
                                                  "\"\\udc00\\ud800\"",
                                                  "\"\\ud83d\\ude00\"",
                                                  "\"\\\"",
                                                  "\"\xff\"",
                                                  "\"\xc0\x80\"",
                                                  "\"\xed\xa0\x80\"",
                                                  "\"\xf4\x90\x80\x80\"",
                                                  "\"\x01\"",
                                                  "\"a\\",
                                                  "\"__metadata__\"",
                                                  "\"content\"",
                                                  "\"id\"",
                                                  "\"type\"",
                                                  "\" \"",
                                                  "\"../../x\"",
                                                  "\"/\""};
  if (random.one_in(8)) return '"' + std::string(random.below(2000), "aA0 \\/{%"[random.below(8)]) + '"';
  if (random.one_in(3) && value.size() > 2) {
    std::string changed(value);
    const size_t at = 1 + random.below(value.size() - 2);
    changed[at] = static_cast<char>(random.one_in(2) ? random.next() : changed[at] + 1);
    return changed;
  }
  return random.pick(kTexts);
}

}  // namespace

void mutate_json(std::string& input, size_t begin, size_t end, std::string_view other, Random& random) {
  end = std::min(end, input.size());
  begin = std::min(begin, end);
  std::string text = input.substr(begin, end - begin);
  const Outline ours = outline(text);
  const auto replace = [&](Stretch s, std::string_view by) { text.replace(s.begin, s.end - s.begin, by); };
  switch (random.below(12)) {
    case 0:
    case 1:
      if (!ours.numbers.empty()) replace(random.pick(ours.numbers), odd_number(random));
      break;
    case 2:
      if (ours.numbers.size() > 1) {
        const std::string number(view(text, random.pick(ours.numbers)));
        replace(random.pick(ours.numbers), number);
      }
      break;
    case 3:
      if (!ours.strings.empty()) {
        const Stretch s = random.pick(ours.strings);
        replace(s, odd_string(view(text, s), random));
      }
      break;
    case 4:
      if (ours.strings.size() > 1) {
        const std::string string(view(text, random.pick(ours.strings)));
        replace(random.pick(ours.strings), string);
      }
      break;
    case 5:
      if (!ours.members.empty()) {
        const Stretch s = random.pick(ours.members);
        std::string many;
        for (size_t n = random.one_in(40) ? 400 : random.few(6); n > 0; --n) many += std::string(view(text, s)) + ",";
        text.insert(s.begin, many);
      }
      break;
    case 6:
      if (!ours.members.empty()) {
        Stretch s = random.pick(ours.members);
        if (s.end < text.size() && text[s.end] == ',') ++s.end;
        replace(s, "");
      }
      break;
    case 7:
      if (!ours.members.empty()) {
        const std::string member(view(text, random.pick(ours.members)));
        const Stretch s = random.pick(ours.members);
        random.one_in(2) ? replace(s, member) : void(text.insert(s.begin, member + ","));
      }
      break;
    case 8:
      if (!ours.values.empty()) {
        const Stretch s = random.pick(ours.values);
        replace(s, nested(view(text, s), random));
      }
      break;
    case 9:
    case 10: {
      const Outline theirs = outline(other);
      const bool members = random.one_in(2);
      const auto& from = members ? theirs.members : theirs.values;
      const auto& to = members ? ours.members : ours.values;
      if (!from.empty() && !to.empty()) replace(random.pick(to), view(other, random.pick(from)));
      break;
    }
    default:
      if (!ours.values.empty()) {
        static const std::vector<std::string> kValues = {"null", "true", "false", "{}", "[]", "0", "-1", "\"\"", "1.5"};
        replace(random.pick(ours.values), random.pick(kValues));
      }
  }
  input.replace(begin, end - begin, text);
}

}  // namespace hanok::fuzz
