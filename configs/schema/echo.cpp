// Structs -> text: the echo, the flat list, the hash and the key reference.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>

#include "base/error.h"
#include "configs/schema/read.h"
#include "configs/schema/visit.h"

namespace hanok {
namespace {

/// Text in double quotes as YAML reads it back, byte for byte.
std::string scalar_text(const std::string& value) {
  std::string out = "\"";
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (byte < 0x20 || byte == 0x7f) {
      char escape[5];
      std::snprintf(escape, sizeof escape, "\\x%02x", byte);
      out += escape;
    } else {
      out += c;
    }
  }
  return out + '"';
}
template <class T>
std::string scalar_text(const T& value) {
  return concat(value);
}

template <class T>
void write_value(std::string& out, int depth, const T& value) {
  const std::string indent(2 * depth, ' ');
  if constexpr (Group<T>) {
    T::fields(value, [&](const char* key, const auto& member, const char*, const FieldRule& = {}) {
      out += concat("\n", indent, key, ":");
      write_value(out, depth + 1, member);
    });
  } else if constexpr (ElementOf<T>::value) {
    if (value.empty()) return void(out += " []");
    for (const auto& element : value) {
      out += concat("\n", indent, "-");
      write_value(out, depth + 1, element);
    }
  } else if constexpr (ValueOf<T>::value) {
    if (value.empty()) return void(out += " {}");
    for (const auto& [key, element] : value) {
      out += concat("\n", indent, scalar_text(key), ":");
      write_value(out, depth + 1, element);
    }
  } else {
    out += " " + scalar_text(value);
  }
}

template <class T>
void flatten_value(std::vector<std::pair<std::string, std::string>>& out, const std::string& key, const T& value) {
  if constexpr (Group<T>) {
    T::fields(value, [&](const char* name, const auto& member, const char*, const FieldRule& = {}) {
      flatten_value(out, join(key, name), member);
    });
  } else if constexpr (ElementOf<T>::value) {
    if (value.empty()) out.emplace_back(key, "[]");
    for (size_t i = 0; i < value.size(); ++i) flatten_value(out, concat(key, ".", i), value[i]);
  } else if constexpr (ValueOf<T>::value) {
    if (value.empty()) out.emplace_back(key, "{}");
    for (const auto& [name, element] : value) flatten_value(out, join(key, name), element);
  } else {
    out.emplace_back(key, concat(value));
  }
}

std::string rule_text(const FieldRule& rule) {
  if (!rule.choices.empty()) return concat(rule.choices);
  std::string text;
  if (std::isfinite(rule.min)) text += concat(">= ", rule.min);
  if (std::isfinite(rule.max)) text += concat(text.empty() ? "" : ", ", "<= ", rule.max);
  return text;
}

struct KeyDescription {
  std::string key, value, meaning, rule;
};

template <class T>
void describe_value(
    std::vector<KeyDescription>& out, const std::string& key, const T& value, const char* doc, const FieldRule& rule) {
  if constexpr (Group<T>) {
    T::fields(value, [&](const char* name, const auto& member, const char* text, const FieldRule& r = {}) {
      describe_value(out, join(key, name), member, text, r);
    });
  } else if constexpr (ElementOf<T>::value) {
    using Element = typename ElementOf<T>::type;
    if constexpr (Group<Element>) {
      describe_value(out, key + ".N", Element{}, doc, rule);
    } else {
      out.push_back({key, concat(value), doc, rule_text(rule)});
    }
  } else if constexpr (ValueOf<T>::value) {
    describe_value(out, key + ".NAME", typename ValueOf<T>::type{}, doc, rule);
  } else {
    out.push_back({key, concat(value), doc, rule_text(rule)});
  }
}

std::vector<KeyDescription> describe() {
  std::vector<KeyDescription> out;
  describe_value(out, "", RunConfig{}, "", {});
  return out;
}

}  // namespace

std::string echo(const RunConfig& config) {
  std::string out;
  write_value(out, 0, config);
  return out.substr(1) + "\n";
}

std::vector<std::pair<std::string, std::string>> flatten(const RunConfig& config) {
  std::vector<std::pair<std::string, std::string>> out;
  flatten_value(out, "", config);
  return out;
}

std::string config_hash(const RunConfig& config) {
  uint64_t hash = 14695981039346656037ull;  // FNV-1a, 64 bits
  for (const auto& [key, value] : flatten(config))
    for (const unsigned char c : key + "=" + value + "\n") hash = (hash ^ c) * 1099511628211ull;
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

std::vector<std::string> differences(const RunConfig& was,
                                     const RunConfig& is,
                                     const std::vector<std::string>& ignored) {
  const auto as_map = [](const RunConfig& config) {
    const auto flat = flatten(config);
    return std::map<std::string, std::string>(flat.begin(), flat.end());
  };
  const auto a = as_map(was), b = as_map(is);
  std::set<std::string> keys;
  for (const auto& [key, value] : a) keys.insert(key);
  for (const auto& [key, value] : b) keys.insert(key);
  std::vector<std::string> out;
  for (const auto& key : keys) {
    const auto covers = [&](const std::string& name) {
      return key == name || key.starts_with(name.ends_with('.') ? name : name + ".");
    };
    if (std::any_of(ignored.begin(), ignored.end(), covers)) continue;
    const auto old_value = a.count(key) ? a.at(key) : "absent";
    const auto new_value = b.count(key) ? b.at(key) : "absent";
    if (old_value != new_value) out.push_back(concat(key, ": was ", old_value, ", is ", new_value));
  }
  return out;
}

std::vector<std::string> known_keys() {
  std::vector<std::string> out;
  for (const KeyDescription& line : describe()) out.push_back(line.key);
  return out;
}

std::string key_reference() {
  std::string out = "| key | default | meaning | rule |\n|---|---|---|---|\n";
  for (const KeyDescription& line : describe()) {
    const std::string value = line.value.empty() ? "" : concat("`", line.value, "`");
    out += concat("| `", line.key, "` | ", value, " | ", line.meaning, " | ", line.rule, " |\n");
  }
  return out;
}

}  // namespace hanok
