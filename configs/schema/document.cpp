#include "configs/schema/document.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>
#include <system_error>

#include "base/error.h"
#include "configs/schema/read.h"

namespace hanok {
namespace {

constexpr int kMaxNesting = 32;
constexpr int64_t kMaxValues = 100000;      // aliases of aliases make a few lines billions of values
constexpr size_t kMaxFileBytes = 16 << 20;  // a device or a data file must not be read to its end

Document convert(const YAML::Node& node, const std::string& name, int depth, int64_t& num_values) {
  const auto place = [&](const YAML::Node& at) {
    const int line = at.Mark().line;
    return line >= 0 ? concat(name, ":", line + 1) : name;
  };
  Document out;
  out.where = place(node);
  HANOK_REQUIRE(depth < kMaxNesting, kConfig) << "nesting: got more levels than the expected " << kMaxNesting << "; "
                                              << out.where << "; does an alias hold itself?";
  HANOK_REQUIRE(++num_values <= kMaxValues, kConfig) << "config: got more values than the expected " << kMaxValues
                                                     << "; " << out.where << "; do aliases multiply each other?";
  if (node.IsScalar()) {
    out.kind = Document::Kind::kScalar;
    out.scalar = node.Scalar();
    HANOK_REQUIRE(out.scalar.find('\0') == std::string::npos, kConfig)
        << "value: got a zero byte in a text, expected none; " << out.where << "; write the text without it";
  } else if (node.IsSequence()) {
    out.kind = Document::Kind::kList;
    for (const auto& item : node) out.list.push_back(convert(item, name, depth + 1, num_values));
  } else if (node.IsMap()) {
    out.kind = Document::Kind::kMap;
    for (const auto& item : node) {
      HANOK_REQUIRE(item.first.IsScalar(), kConfig)
          << "key: got a list or a mapping, expected text; " << place(item.first);
      const std::string key = item.first.Scalar();
      for (const auto& entry : out.map)
        HANOK_REQUIRE(entry.key != key, kConfig) << key << ": got the key twice, expected once; " << entry.where
                                                 << " and " << place(item.first) << "; remove one";
      out.map.push_back({key, place(item.first), convert(item.second, name, depth + 1, num_values)});
    }
  }
  return out;
}

std::string read_text(const std::string& file) {
  std::error_code error;
  const bool is_folder = std::filesystem::is_directory(file, error);
  std::ifstream in(file, std::ios::binary);
  HANOK_REQUIRE(in.is_open() && !is_folder, kConfig)
      << "config: got " << (is_folder ? "a folder" : std::generic_category().message(errno))
      << ", expected a YAML file; " << file << "; correct the path given to --config or base";
  std::string text;
  char piece[1 << 14];
  while (text.size() <= kMaxFileBytes && (in.read(piece, sizeof piece), in.gcount() > 0)) {
    text.append(piece, static_cast<size_t>(in.gcount()));
  }
  HANOK_REQUIRE(text.size() <= kMaxFileBytes, kConfig)
      << "config: got more than " << kMaxFileBytes << " bytes, expected a short YAML file; " << file
      << "; correct the path given to --config or base";
  return text;
}

Document load_at_depth(const std::string& file, int depth);

Document expand_bases(const Document& node, const std::string& file, int depth) {
  Document out = node;
  for (Document& element : out.list) element = expand_bases(element, file, depth);
  if (node.kind != Document::Kind::kMap) return out;
  out.map.clear();
  Document under;
  for (const DocumentEntry& entry : node.map) {
    if (entry.key != "base") {
      out.map.push_back({entry.key, entry.where, expand_bases(entry.value, file, depth)});
      continue;
    }
    const Document& value = entry.value;
    const auto names = value.kind == Document::Kind::kList ? value.list : std::vector<Document>{value};
    for (const Document& name : names) {
      HANOK_REQUIRE(name.kind == Document::Kind::kScalar && !name.scalar.empty(), kConfig)
          << "base: got something else, expected the path of a YAML file or a list of paths; " << entry.where;
      const auto folder = std::filesystem::path(file).parent_path();
      under = merged(under, load_at_depth((folder / name.scalar).lexically_normal().string(), depth + 1));
    }
  }
  return merged(under, out);
}

Document load_at_depth(const std::string& file, int depth) {
  HANOK_REQUIRE(depth < 16, kConfig) << "base: got files that include each other, expected no circle; " << file
                                     << "; remove one of the base lines";
  return expand_bases(parse_document(read_text(file), file), file, depth);
}

/// The element of a list that a part of a --set path means.
Document& element_of(Document& list, const std::string& key, const std::string& set) {
  std::vector<std::string> names;
  for (Document& element : list.list) {
    const Document* name = element.find("name");
    if (name == nullptr) continue;
    if (name->scalar == key) return element;
    names.push_back(name->scalar);
  }
  size_t index = list.list.size();
  const auto end = key.data() + key.size();
  const auto parsed = std::from_chars(key.data(), end, index);
  const bool is_index = parsed.ptr == end && parsed.ec == std::errc() && index < list.list.size();
  const std::string guess = nearest(key, names);
  HANOK_REQUIRE(is_index, kConfig) << key << ": got this element, expected an index below " << list.list.size()
                                   << (names.empty() ? "" : concat(" or one of the names ", names))
                                   << (guess.empty() ? "" : concat("; did you mean ", guess, "?")) << "; --set " << set;
  return list.list[index];
}

Document& child_of(Document& node, const std::string& key, const std::string& set) {
  if (node.kind == Document::Kind::kList) return element_of(node, key, set);
  if (Document* child = node.find(key)) return *child;
  node.map.push_back({key, "--set " + set, Document{}});
  return node.map.back().value;
}

int edit_distance(const std::string& a, const std::string& b) {
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

/// Takes the events of a document for nothing but their end.
class NoEvents : public YAML::EventHandler {
 public:
  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}
};

/// 0, 1, or 2 for more. Not by LoadAll: before a comma yaml-cpp 0.7 finds empty documents without end.
int num_documents(const std::string& text) {
  std::istringstream stream(text);
  YAML::Parser parser(stream);
  NoEvents events;
  int count = 0;
  while (count < 2 && parser.HandleNextDocument(events)) ++count;
  return count;
}

}  // namespace

const Document* Document::find(const std::string& key) const {
  const auto found = std::find_if(map.begin(), map.end(), [&](const DocumentEntry& entry) { return entry.key == key; });
  return found == map.end() ? nullptr : &found->value;
}

Document* Document::find(const std::string& key) {
  return const_cast<Document*>(static_cast<const Document*>(this)->find(key));
}

Document parse_document(const std::string& text, const std::string& name) {
  try {
    HANOK_REQUIRE(num_documents(text) <= 1, kConfig)
        << name
        << ": got 2 YAML documents in one file, expected one; remove the --- lines, or a comma outside of lists";
    int64_t num_values = 0;
    return convert(YAML::Load(text), name, 0, num_values);
  } catch (const YAML::Exception& error) {
    HANOK_FAIL(kConfig) << name << ":" << error.mark.line + 1 << ": not YAML: " << error.msg << "; mend this line";
  }
}

Document load_document(const std::string& file) {
  return load_at_depth(file, 0);
}

Document merged(const Document& under, const Document& over) {
  if (under.kind == Document::Kind::kNull) return over;
  if (under.kind != Document::Kind::kMap || over.kind != Document::Kind::kMap) return over;
  Document out = under;
  out.where = over.where;
  for (const DocumentEntry& entry : over.map) {
    if (Document* value = out.find(entry.key)) {
      *value = merged(*value, entry.value);
    } else {
      out.map.push_back(entry);
    }
  }
  return out;
}

void apply_set(Document& root, const std::string& set) {
  const size_t equals = set.find('=');
  const std::string path = set.substr(0, equals);
  std::vector<std::string> keys(1);
  for (const char c : path) {
    if (c == '.') {
      keys.emplace_back();
    } else {
      keys.back() += c;
    }
  }
  const bool has_empty = std::any_of(keys.begin(), keys.end(), [](const std::string& key) { return key.empty(); });
  HANOK_REQUIRE(equals != std::string::npos && !has_empty, kConfig)
      << "--set: got " << set << ", expected KEY=VALUE; for example --set optimizer.lr=1e-4";
  HANOK_REQUIRE(keys.back() != "base", kConfig)
      << "--set " << set << ": base is for files only; write a small YAML file with `base:` and these keys";
  Document* node = &root;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (node->kind == Document::Kind::kNull) *node = {.kind = Document::Kind::kMap, .where = "--set " + set};
    HANOK_REQUIRE(node->kind != Document::Kind::kScalar, kConfig)
        << keys[i - 1] << ": got the value " << node->scalar << ", expected a group of keys; --set " << set;
    node = &child_of(*node, keys[i], set);
  }
  const std::string value = set.substr(equals + 1);
  *node = parse_document(value.empty() ? "''" : value, "--set " + set);
  node->where = "--set " + set;
}

std::string nearest(const std::string& key, const std::vector<std::string>& candidates) {
  std::string best;
  int best_distance = static_cast<int>(key.size()) / 2 + 1;
  for (const auto& candidate : candidates) {
    const int distance = edit_distance(key, candidate);
    if (distance < best_distance) best_distance = distance, best = candidate;
  }
  for (const auto& candidate : candidates)  // half a name: "warmup" of "warmup_steps"
    if (best.empty() && key.size() >= 3 && candidate.starts_with(key)) best = candidate;
  return best;
}

}  // namespace hanok
