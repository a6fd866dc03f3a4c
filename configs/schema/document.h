// A config text as a tree that remembers where every value was written, so that a message can say file and line even
// after base files and --set were merged in. Private to configs/.
#pragma once

#include <string>
#include <vector>

namespace hanok {

struct DocumentEntry;

struct Document {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::string scalar;
  std::vector<Document> list;
  std::vector<DocumentEntry> map;  // in the order written, keys unique
  std::string where;               // "configs/run/digits.yaml:12", or "--set optimizer.lr=1"

  Document* find(const std::string& key);
  const Document* find(const std::string& key) const;
};

struct DocumentEntry {
  std::string key, where;  // where the key stands
  Document value;
};

/// YAML text without bases. errors: kConfig with the line if it is not YAML, a key is written twice, or nesting is too
/// deep, or the values are too many (aliases that hold themselves or multiply)
Document parse_document(const std::string& text, const std::string& name);
/// A file with its `base:` files merged under it. errors: kConfig as above, or if a file cannot be read
Document load_document(const std::string& file);
/// Deep merge: `over` wins; lists are replaced whole.
Document merged(const Document& under, const Document& over);
/// `set`: "a.b=VALUE" with VALUE in YAML; list elements by index or by their `name`. Keys that no schema knows are left
/// for the reader to refuse. errors: kConfig
void apply_set(Document& root, const std::string& set);

}  // namespace hanok
