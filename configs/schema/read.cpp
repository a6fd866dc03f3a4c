// YAML -> structs. Every fault of a config is collected before one error is raised.
#include "configs/schema/read.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "configs/schema/document.h"
#include "configs/schema/gpu.h"
#include "configs/schema/visit.h"

namespace hanok {
namespace {

struct Fault {
  std::string key, text, where;
};

struct Faults {
  std::vector<Fault> list;
  /// A fault of the top-level optimizer is told once, not again for every stage that inherited it.
  void add(const std::string& key, const std::string& text, const std::string& where) {
    const std::string inherited = key.starts_with("stages.") ? key.substr(key.find('.', 7) + 1) : key;
    for (const Fault& fault : list)
      if (fault.where == where && fault.key == inherited) return;
    list.push_back({key, text, where});
  }
  void raise() const {
    if (list.empty()) return;
    std::string text = list.size() == 1 ? "" : concat(list.size(), " faults in the config:");
    for (const Fault& fault : list)
      text += concat(list.size() == 1 ? "" : "\n  ", fault.key, ": ", fault.text, "; ", fault.where);
    HANOK_FAIL(kConfig) << text;
  }
};

std::string kind_name(const Document& node) {
  switch (node.kind) {
    case Document::Kind::kNull: return "nothing";
    case Document::Kind::kScalar: return node.scalar.empty() ? "an empty value" : node.scalar;
    case Document::Kind::kList: return "a list";
    case Document::Kind::kMap: return "a mapping of keys";
  }
  return "";
}

/// A known key that was probably meant: of this group, or the same name in another one ("lr" -> "optimizer.lr").
std::string guess_key(const std::string& prefix, const std::string& key, const std::vector<std::string>& known) {
  const std::string close = nearest(key, known);
  if (!close.empty()) return join(prefix, close);
  for (const auto& other : known_keys())
    if (other.ends_with("." + key)) return other;
  return "";
}

template <class T>
void read_value(const Document& node, const std::string& key, T& out, const FieldRule& rule, Faults& faults);

template <Group T>
void read_group(const Document& node, const std::string& prefix, T& out, Faults& faults) {
  if (node.kind == Document::Kind::kNull) return;
  if (node.kind != Document::Kind::kMap) {
    const std::string thing = prefix.empty() ? "config" : prefix;
    return faults.add(thing, concat("got ", kind_name(node), ", expected a mapping of keys"), node.where);
  }
  std::vector<std::string> known;
  T::fields(out, [&](const char* key, auto& member, const char*, const FieldRule& rule = {}) {
    known.emplace_back(key);
    if (const Document* value = node.find(key)) read_value(*value, join(prefix, key), member, rule, faults);
  });
  for (const DocumentEntry& entry : node.map) {
    if (std::find(known.begin(), known.end(), entry.key) != known.end()) continue;
    const std::string guess = guess_key(prefix, entry.key, known);
    faults.add(join(prefix, entry.key.empty() ? "\"\"" : entry.key),
               guess.empty() ? concat("unknown key, expected one of ", known)
                             : concat("unknown key; did you mean ", guess, "?"),
               entry.where);
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

bool parse_scalar(const std::string& text, bool& out) {
  const bool is_true = text == "true" || text == "True" || text == "yes" || text == "on";
  out = is_true;
  return is_true || text == "false" || text == "False" || text == "no" || text == "off";
}
bool parse_scalar(const std::string& text, std::string& out) {
  out = text;
  return true;
}
template <class T>
bool parse_whole_text(const std::string& text, T& out) {
  const char* begin = text.data();
  const char* end = begin + text.size();
  if (text.size() > 1 && text[0] == '+' && text[1] != '-') ++begin;
  const auto parsed = std::from_chars(begin, end, out);
  return begin != end && parsed.ptr == end && parsed.ec == std::errc();
}
bool parse_scalar(const std::string& text, double& out) {
  return parse_whole_text(text, out) && std::isfinite(out);
}
bool parse_scalar(const std::string& text, int64_t& out) {
  if (parse_whole_text(text, out)) return true;
  double number = 0;  // 67e9 is a whole number too
  if (!parse_scalar(text, number) || number != std::floor(number) || std::abs(number) > 9e15) return false;
  out = static_cast<int64_t>(number);
  return true;
}

template <class T>
void check_rule(const Document& node, const std::string& key, const T& value, const FieldRule& rule, Faults& faults) {
  if constexpr (std::is_same_v<T, std::string>) {
    if (rule.choices.empty() || std::find(rule.choices.begin(), rule.choices.end(), value) != rule.choices.end())
      return;
    const std::string guess = nearest(value, {rule.choices.begin(), rule.choices.end()});
    faults.add(key,
               concat("got ",
                      value.empty() ? "nothing" : value,
                      ", expected one of ",
                      rule.choices,
                      guess.empty() ? "" : concat("; did you mean ", guess, "?")),
               node.where);
  } else if constexpr (!std::is_same_v<T, bool>) {
    if (static_cast<double>(value) < rule.min)
      faults.add(key, concat("got ", value, ", expected at least ", rule.min), node.where);
    if (static_cast<double>(value) > rule.max)
      faults.add(key, concat("got ", value, ", expected at most ", rule.max), node.where);
  }
}

template <class T>
void read_value(const Document& node, const std::string& key, T& out, const FieldRule& rule, Faults& faults) {
  using Kind = Document::Kind;
  if constexpr (Group<T>) {
    read_group(node, key, out, faults);
  } else if constexpr (ElementOf<T>::value) {
    out.clear();
    if (node.kind == Kind::kNull) return;
    if (node.kind == Kind::kMap) return faults.add(key, concat("got a mapping of keys, expected a list"), node.where);
    const bool is_one = node.kind == Kind::kScalar;  // a single value stands for a list of one
    for (size_t i = 0; i < (is_one ? 1 : node.list.size()); ++i) {
      typename ElementOf<T>::type element{};
      read_value(is_one ? node : node.list[i], concat(key, ".", i), element, rule, faults);
      out.push_back(std::move(element));
    }
  } else if constexpr (ValueOf<T>::value) {
    out.clear();
    if (node.kind == Kind::kNull) return;
    if (node.kind != Kind::kMap)
      return faults.add(key, concat("got ", kind_name(node), ", expected a mapping of names"), node.where);
    for (const DocumentEntry& entry : node.map) {
      // Paths of keys are spelled with dots: such a name could not be reached by --set.
      if (entry.key.empty() || entry.key.find('.') != std::string::npos)
        faults.add(key, concat("got the name \"", entry.key, "\", expected one without dots"), entry.where);
      read_value(entry.value, join(key, entry.key), out[entry.key], rule, faults);
    }
  } else {
    const bool is_empty_text = node.kind == Kind::kNull && std::is_same_v<T, std::string>;
    if (is_empty_text) {
      out = T{};
    } else if (node.kind != Kind::kScalar || !parse_scalar(node.scalar, out)) {
      return faults.add(key, concat("got ", kind_name(node), ", expected ", type_name(out)), node.where);
    }
    check_rule(node, key, out, rule, faults);
  }
}

/// Every stage starts from the top-level optimizer and layout.
void spread_defaults(Document& root) {
  Document* stages = root.find("stages");
  if (stages == nullptr) return;
  for (Document& stage : stages->list) {
    if (stage.kind != Document::Kind::kMap) continue;
    for (const char* key : {"optimizer", "parallel"}) {
      const Document* common = root.find(key);
      if (common == nullptr || common->kind != Document::Kind::kMap) continue;
      if (Document* own = stage.find(key)) {
        *own = merged(*common, *own);
      } else {
        stage.map.push_back({key, common->where, *common});
      }
    }
  }
}

template <class T>
T read_struct(const Document& root) {
  Faults faults;
  T config;
  read_group(root, "", config, faults);
  faults.raise();
  return config;
}

}  // namespace

RunConfig read_config(const std::string& file, const std::vector<std::string>& sets) {
  Document root = load_document(file);
  HANOK_REQUIRE(root.kind == Document::Kind::kMap || root.kind == Document::Kind::kNull, kConfig)
      << "config: got " << kind_name(root) << ", expected a mapping of keys; " << root.where;
  for (const auto& set : sets) apply_set(root, set);
  spread_defaults(root);
  RunConfig config = read_struct<RunConfig>(root);
  if (config.out.empty()) config.out = "runs/" + config.name;
  while (config.out.size() > 1 && config.out.back() == '/') config.out.pop_back();
  if (config.model.tokenizer.empty()) config.model.tokenizer = config.model.path;
  return config;
}

RunConfig parse_config(const std::string& yaml) {
  return read_struct<RunConfig>(parse_document(yaml, "resolved config"));
}

ModelConfig read_model_config(const std::string& file) {
  return read_struct<ModelConfig>(load_document(file));
}

GpuConfig read_gpu_config(const std::string& file) {
  return read_struct<GpuConfig>(load_document(file));
}

}  // namespace hanok
