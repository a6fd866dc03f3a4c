// Byte-level BPE, the way `tokenizers` runs it for Qwen: added tokens are cut out first, then NFC, the split regex, the
// byte alphabet and the merges.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace hanok {

/// [begin, end) in bytes of a UTF-8 text, or in tokens of a sequence: the owner says which.
struct Span {
  int64_t begin = 0, end = 0;
  friend bool operator==(const Span&, const Span&) = default;
};

struct Encoding {
  std::vector<int32_t> ids;
  std::vector<Span> offsets;  // bytes of the input that each token came from; what NFC or U+FFFD replaced counts whole
};

/// Immutable after loading: any number of threads may encode at once.
class Tokenizer {
 public:
  /// Reads tokenizer.json, or vocab.json + merges.txt with added tokens from tokenizer_config.json, in `folder`.
  /// errors: kData naming file and key if something is missing or of another kind (model other than BPE, unknown
  /// pre-tokenizer);
  ///         kIo if a file cannot be read
  static Tokenizer from_folder(const std::string& folder);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// As tokenizers' encode(add_special_tokens=False). Special tokens ("<|im_end|>") that begin inside one of `literal`
  /// (byte spans of text that came from users) stay plain text; other added tokens ("<think>") are vocabulary and match
  /// anywhere. Invalid UTF-8 is replaced by U+FFFD as Rust's from_utf8_lossy does.
  std::vector<int32_t> encode(std::string_view text, std::span<const Span> literal = {}) const;
  Encoding encode_with_offsets(std::string_view text, std::span<const Span> literal = {}) const;
  /// Ids that no token has are left out; invalid UTF-8 is replaced.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;
  /// The id of a token given by its exact text (added tokens first, then the vocabulary).
  std::optional<int32_t> id(std::string_view token) const;
  int64_t vocab_size() const;  // highest id + 1, added tokens included
  /// Changes when anything that decides ids changes. 16 hex digits.
  const std::string& content_hash() const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace hanok
