#include "configs/schema/read.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <sstream>

#include "base/error.h"

namespace hanok {
namespace {

template <class T>
struct Ignore {
  template <class... Args>
  void operator()(Args&&...) const {}
};
template <class T>
concept Group = requires(T& t) {
  T::fields(t, Ignore<T>{});
};
template <class T>
struct ElementOf : std::false_type {};
template <class T>
struct ElementOf<std::vector<T>> : std::true_type {
  using type = T;
};
template <class T>
struct ValueOf : std::false_type {};
template <class T>
struct ValueOf<std::map<std::string, T>> : std::true_type {
  using type = T;
};

std::string join(const std::string& prefix, std::string_view key) {
  return prefix.empty() ? std::string(key) : concat(prefix, ".", key);
}

int edit_distance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string nearest(const std::string& key, const std::vector<std::string>& known) {
  std::string best;
  int best_distance = static_cast<int>(key.size()) / 2 + 1;
  for (const auto& candidate : known) {
    const int distance = edit_distance(key, candidate);
    if (distance < best_distance) best_distance = distance, best = candidate;
  }
  return best;
}

// ---- reading a node into the structs; every fault is collected ----

struct Faults {
  std::string file;
  std::vector<std::string> lines;
  void add(const YAML::Node& node, const std::string& text) {
    const YAML::Mark mark = node.Mark();
    lines.push_back(mark.line >= 0 ? concat(text, "; ", file, ":", mark.line + 1) : concat(text, "; ", file));
  }
};

template <class T>
void read_value(const YAML::Node& node, const std::string& key, T& out, const FieldRule& rule, Faults& faults);

template <Group T>
void read_group(const YAML::Node& node, const std::string& prefix, T& out, Faults& faults) {
  if (node.IsNull()) return;
  if (!node.IsMap())
    return faults.add(node,
                      concat(prefix, ": got a ", node.IsSequence() ? "list" : "value", ", expected a mapping of keys"));
  std::vector<std::string> known;
  T::fields(out, [&](const char* key, auto& member, const char*, const FieldRule& rule = {}) {
    known.emplace_back(key);
    if (const YAML::Node value = node[key]) read_value(value, join(prefix, key), member, rule, faults);
  });
  for (const auto& item : node) {
    const std::string key = item.first.Scalar();
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    const std::string guess = nearest(key, known);
    faults.add(item.first,
               concat(join(prefix, key),
                      ": unknown key",
                      guess.empty() ? "" : concat("; did you mean ", join(prefix, guess), "?")));
  }
}

const char* type_name(bool) {
  return "true or false";
}
const char* type_name(int64_t) {
  return "a whole number";
}
const char* type_name(double) {
  return "a number";
}
const char* type_name(const std::string&) {
  return "text";
}

bool parse_scalar(const YAML::Node& node, bool& out) {
  return YAML::convert<bool>::decode(node, out);
}
bool parse_scalar(const YAML::Node& node, std::string& out) {
  return out = node.Scalar(), true;
}
bool parse_scalar(const YAML::Node& node, double& out) {
  return YAML::convert<double>::decode(node, out) && !std::isnan(out);
}
bool parse_scalar(const YAML::Node& node, int64_t& out) {
  if (YAML::convert<int64_t>::decode(node, out)) return true;
  double number = 0;  // 67e9 is a whole number too
  if (!YAML::convert<double>::decode(node, number) || number != std::floor(number) || std::abs(number) > 9e15)
    return false;
  out = static_cast<int64_t>(number);
  return true;
}

template <class T>
void check_rule(const YAML::Node& node, const std::string& key, const T& value, const FieldRule& rule, Faults& faults) {
  if constexpr (std::is_same_v<T, std::string>) {
    if (!rule.choices.empty() && std::find(rule.choices.begin(), rule.choices.end(), value) == rule.choices.end())
      faults.add(node, concat(key, ": got ", value, ", expected one of ", rule.choices));
  } else if constexpr (!std::is_same_v<T, bool>) {
    if (static_cast<double>(value) < rule.min)
      faults.add(node, concat(key, ": got ", value, ", expected at least ", rule.min));
    if (static_cast<double>(value) > rule.max)
      faults.add(node, concat(key, ": got ", value, ", expected at most ", rule.max));
  }
}

template <class T>
void read_value(const YAML::Node& node, const std::string& key, T& out, const FieldRule& rule, Faults& faults) {
  if constexpr (Group<T>) {
    read_group(node, key, out, faults);
  } else if constexpr (ElementOf<T>::value) {
    out.clear();
    if (node.IsNull()) return;
    const bool one = node.IsScalar();  // a single value stands for a list of one
    if (!one && !node.IsSequence()) return faults.add(node, concat(key, ": got a mapping, expected a list"));
    for (size_t i = 0; i < (one ? 1 : node.size()); ++i) {
      typename ElementOf<T>::type element{};
      read_value(one ? node : node[i], concat(key, ".", i), element, rule, faults);
      out.push_back(std::move(element));
    }
  } else if constexpr (ValueOf<T>::value) {
    out.clear();
    if (node.IsNull()) return;
    if (!node.IsMap()) return faults.add(node, concat(key, ": got a value, expected a mapping of names"));
    for (const auto& item : node)
      read_value(item.second, join(key, item.first.Scalar()), out[item.first.Scalar()], rule, faults);
  } else {
    if (node.IsNull() && std::is_same_v<T, std::string>) return void(out = T{});
    if (!node.IsScalar() || !parse_scalar(node, out))
      return faults.add(
          node,
          concat(key, ": got ", node.IsScalar() ? node.Scalar() : "a list or mapping", ", expected ", type_name(out)));
    check_rule(node, key, out, rule, faults);
  }
}

// ---- files, bases and overrides ----

YAML::Node load_text(const std::string& text, const std::string& file) {
  try {
    YAML::Node node = YAML::Load(text);
    return node.IsNull() ? YAML::Node(YAML::NodeType::Map) : node;
  } catch (const YAML::Exception& error) {
    HANOK_FAIL(kConfig) << file << ":" << error.mark.line + 1 << ": not YAML: " << error.msg << "; mend this line";
  }
}

std::string read_text(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  HANOK_REQUIRE(in.good(), kIo) << "config: cannot read " << file << "; check the path given to --config or base";
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

/// Deep merge: `over` wins; lists are replaced whole.
YAML::Node merged(const YAML::Node& under, const YAML::Node& over) {
  if (!under.IsMap() || !over.IsMap()) return YAML::Clone(over);
  YAML::Node out = YAML::Clone(under);
  for (const auto& item : over) {
    const std::string key = item.first.Scalar();
    out[key] = out[key] ? merged(out[key], item.second) : YAML::Clone(item.second);
  }
  return out;
}

YAML::Node expand_bases(const YAML::Node& node, const std::string& file, int depth);

YAML::Node load_file(const std::string& file, int depth) {
  HANOK_REQUIRE(depth < 16, kConfig) << file << ": base files include each other; break the circle";
  return expand_bases(load_text(read_text(file), file), file, depth);
}

YAML::Node expand_bases(const YAML::Node& node, const std::string& file, int depth) {
  if (node.IsSequence()) {
    YAML::Node out(YAML::NodeType::Sequence);
    for (const auto& item : node) out.push_back(expand_bases(item, file, depth));
    return out;
  }
  if (!node.IsMap()) return node;
  YAML::Node own(YAML::NodeType::Map);
  YAML::Node under(YAML::NodeType::Map);
  for (const auto& item : node) {
    if (item.first.Scalar() != "base") {
      own[item.first] = expand_bases(item.second, file, depth);
      continue;
    }
    const auto folder = std::filesystem::path(file).parent_path();
    const auto add = [&](const YAML::Node& name) {
      under = merged(under, load_file((folder / name.Scalar()).string(), depth + 1));
    };
    if (item.second.IsSequence()) {
      for (const auto& name : item.second) add(name);
    } else {
      add(item.second);
    }
  }
  return under.size() == 0 ? own : merged(under, own);
}

YAML::Node element_of(const YAML::Node& list, const std::string& key, const std::string& set) {
  for (const auto& element : list)
    if (element.IsMap() && element["name"] && element["name"].Scalar() == key) return element;
  size_t index = list.size();
  const auto end = key.data() + key.size();
  const auto parsed = std::from_chars(key.data(), end, index);
  HANOK_REQUIRE(parsed.ptr == end && index < list.size(), kConfig)
      << "--set " << set << ": got element " << key << ", expected an index below " << list.size()
      << " or a name in the list";
  return list[index];
}

void apply_set(YAML::Node root, const std::string& set) {
  const size_t equals = set.find('=');
  HANOK_REQUIRE(equals != std::string::npos && equals > 0, kConfig)
      << "--set: got " << set << ", expected KEY=VALUE, for example optimizer.lr=1e-4";
  std::vector<std::string> keys;
  std::istringstream path(set.substr(0, equals));
  for (std::string key; std::getline(path, key, '.');) keys.push_back(key);
  YAML::Node node = root;
  for (size_t i = 0; i + 1 < keys.size(); ++i) {
    YAML::Node next = node.IsSequence() ? element_of(node, keys[i], set) : node[keys[i]];
    if (!next.IsDefined() || next.IsNull()) next = node[keys[i]] = YAML::Node(YAML::NodeType::Map);
    HANOK_REQUIRE(next.IsMap() || next.IsSequence(), kConfig)
        << "--set " << set << ": " << keys[i] << " is a value, expected a group of keys";
    node.reset(next);
  }
  const YAML::Node value = load_text(set.substr(equals + 1).empty() ? "''" : set.substr(equals + 1), "--set " + set);
  if (node.IsSequence()) {
    element_of(node, keys.back(), set) = value;
  } else {
    node[keys.back()] = value;
  }
}

/// Every stage starts from the top-level optimizer and layout.
void spread_defaults(YAML::Node root) {
  if (!root["stages"] || !root["stages"].IsSequence()) return;
  for (size_t i = 0; i < root["stages"].size(); ++i) {
    YAML::Node stage = root["stages"][i];
    if (!stage.IsMap()) continue;
    for (const char* key : {"optimizer", "parallel"}) {
      if (!root[key] || !root[key].IsMap()) continue;
      stage[key] = stage[key] ? merged(root[key], stage[key]) : YAML::Clone(root[key]);
    }
  }
}

template <class T>
T read_struct(const YAML::Node& root, const std::string& file) {
  Faults faults{file, {}};
  T config;
  read_group(root, "", config, faults);
  if (!faults.lines.empty()) {
    std::string text = faults.lines.size() == 1 ? "" : concat(faults.lines.size(), " faults in the config:\n  ");
    for (size_t i = 0; i < faults.lines.size(); ++i) text += (i ? "\n  " : "") + faults.lines[i];
    HANOK_FAIL(kConfig) << text;
  }
  return config;
}

// ---- writing ----

std::string scalar_text(const std::string& value) {
  YAML::Emitter out;
  out << YAML::DoubleQuoted << value;
  return out.c_str();
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

template <class T>
void describe_value(std::string& out, const std::string& key, const T& value, const char* doc, const FieldRule& rule) {
  if constexpr (Group<T>) {
    T::fields(value, [&](const char* name, const auto& member, const char* text, const FieldRule& r = {}) {
      describe_value(out, join(key, name), member, text, r);
    });
  } else if constexpr (ElementOf<T>::value && !std::is_arithmetic_v<typename ElementOf<T>::type>) {
    using Element = typename ElementOf<T>::type;
    if constexpr (Group<Element>) {
      describe_value(out, key + ".N", Element{}, doc, rule);
    } else {
      out += concat("| `", key, "` | `", value, "` | ", doc, " | |\n");
    }
  } else if constexpr (ValueOf<T>::value) {
    describe_value(out, key + ".NAME", typename ValueOf<T>::type{}, doc, rule);
  } else {
    out += concat("| `", key, "` | `", value, "` | ", doc, " | ", rule_text(rule), " |\n");
  }
}

}  // namespace

RunConfig read_config(const std::string& file, const std::vector<std::string>& sets) {
  YAML::Node root = load_file(file, 0);
  HANOK_REQUIRE(root.IsMap(), kConfig) << file << ": got a list or a value, expected a mapping of keys";
  for (const auto& set : sets) apply_set(root, set);
  spread_defaults(root);
  RunConfig config = read_struct<RunConfig>(root, file);
  if (config.out.empty()) config.out = "runs/" + config.name;
  if (config.model.tokenizer.empty()) config.model.tokenizer = config.model.path;
  return config;
}

RunConfig parse_config(const std::string& yaml) {
  return read_struct<RunConfig>(load_text(yaml, "resolved config"), "resolved config");
}

ModelConfig read_model_config(const std::string& file) {
  return read_struct<ModelConfig>(load_file(file, 0), file);
}

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
    if (std::any_of(ignored.begin(), ignored.end(), [&](const auto& prefix) { return key.starts_with(prefix); }))
      continue;
    const auto old_value = a.count(key) ? a.at(key) : "absent";
    const auto new_value = b.count(key) ? b.at(key) : "absent";
    if (old_value != new_value) out.push_back(concat(key, ": was ", old_value, ", is ", new_value));
  }
  return out;
}

std::string key_reference() {
  std::string out = "| key | default | meaning | rule |\n|---|---|---|---|\n";
  describe_value(out, "", RunConfig{}, "", {});
  return out;
}

}  // namespace hanok
