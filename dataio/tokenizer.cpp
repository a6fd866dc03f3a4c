#include "dataio/tokenizer.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>

#include "base/error.h"
#include "dataio/store/strict_json.h"
#include "dataio/text/added_tokens.h"
#include "dataio/text/bpe.h"
#include "dataio/text/split_pattern.h"
#include "dataio/text/tokenizer_spec.h"
#include "dataio/text/unicode.h"

namespace hanok {
namespace {

constexpr int64_t kIdSlack = 1 << 20;  // ids may leave this many holes, so that a table by id stays small

/// What each id stands for, by id.
struct TokenBytes {
  struct Entry {
    size_t begin = 0;
    uint32_t size = 0;
    bool known = false, special = false;
  };
  std::string bytes;
  std::vector<Entry> entries;

  std::string_view operator[](int32_t id) const {
    return std::string_view(bytes).substr(entries[id].begin, entries[id].size);
  }
  bool knows(int32_t id) const { return id >= 0 && static_cast<size_t>(id) < entries.size() && entries[id].known; }
  void set(int32_t id, std::string_view token, bool special) {
    if (static_cast<size_t>(id) >= entries.size()) entries.resize(id + 1);
    // A token with characters outside the byte alphabet stands for its own UTF-8: tokenizers' ByteLevel decoder.
    const auto decoded = byte_alphabet::bytes_of(token);
    const std::string_view value = decoded ? std::string_view(*decoded) : token;
    entries[id] = {bytes.size(), static_cast<uint32_t>(value.size()), true, special};
    bytes += value;
  }
};

std::string hash_of(const TokenizerSpec& spec) {
  XXH3_state_t* state = XXH3_createState();
  if (!state) throw std::bad_alloc();
  XXH3_64bits_reset(state);
  const auto add = [&](const void* data, size_t size) { XXH3_64bits_update(state, data, size); };
  const auto number = [&](int64_t value) { add(&value, sizeof value); };
  const auto text = [&](std::string_view value) {
    number(static_cast<int64_t>(value.size()));
    add(value.data(), value.size());
  };
  text("hanok tokenizer 1");  // raise it when the same files come to give other ids
  number(spec.nfc);
  number(spec.ignore_merges);
  number(static_cast<int64_t>(spec.patterns.size()));
  for (const std::string& pattern : spec.patterns) text(pattern);
  std::vector<size_t> by_id(spec.ids.size());
  for (size_t i = 0; i < by_id.size(); ++i) by_id[i] = i;
  std::sort(by_id.begin(), by_id.end(), [&](size_t a, size_t b) { return spec.ids[a] < spec.ids[b]; });
  for (const size_t i : by_id) number(spec.ids[i]), text(spec.vocabulary[i]);
  for (const BpeMerge& m : spec.merges) add(&m, sizeof m);
  for (const AddedToken& t : spec.added) {
    text(t.content);
    number(t.id);
    for (const bool flag : {t.single_word, t.lstrip, t.rstrip, t.normalized, t.special}) number(flag);
  }
  const uint64_t value = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  std::string out;
  for (int shift = 60; shift >= 0; shift -= 4) out += "0123456789abcdef"[value >> shift & 15];
  return out;
}

std::array<int32_t, 256> byte_ids(const TokenizerSpec& spec) {
  std::array<int32_t, 256> out;
  for (int b = 0; b < 256; ++b) {
    std::string token;
    unicode::append(token, byte_alphabet::character(static_cast<uint8_t>(b)));
    const auto place = spec.vocabulary.find(token);
    out[b] = place ? spec.ids[*place] : -1;
  }
  return out;
}

}  // namespace

struct Tokenizer::State {
  explicit State(TokenizerSpec given) : spec(std::move(given)), bpe(byte_ids(spec), spec.merges), hash(hash_of(spec)) {
    for (const std::string& pattern : spec.patterns) patterns.emplace_back(pattern, spec.where);
    const auto limit = static_cast<int64_t>(spec.ids.size() + spec.added.size()) + kIdSlack;
    const auto set = [&](int32_t id, std::string_view token, bool special) {
      HANOK_REQUIRE(id < limit, kData) << "token " << shown(token) << ": got id " << id << ", expected below " << limit
                                       << " for this many tokens; " << spec.where;
      bytes.set(id, token, special);
    };
    for (size_t i = 0; i < spec.ids.size(); ++i) {
      HANOK_REQUIRE(!bytes.knows(spec.ids[i]), kData) << "token " << shown(spec.vocabulary[i]) << ": got id "
                                                      << spec.ids[i] << ", which another token has; " << spec.where;
      set(spec.ids[i], spec.vocabulary[i], false);
    }
    unicode::OffsetMap map;
    std::string normal;
    for (const AddedToken& token : spec.added) {
      const bool rewritten = token.normalized && spec.nfc && unicode::normalize_nfc(token.content, normal, map);
      const std::string& pattern = rewritten ? normal : token.content;
      (token.normalized ? normalized_tokens : exact_tokens).add(token, pattern, spec.where);
      if (bytes.knows(token.id)) {
        const auto place = spec.vocabulary.find(token.content);
        HANOK_REQUIRE(place && spec.ids[*place] == token.id, kData)
            << "added token " << shown(token.content) << ": got id " << token.id << ", which another token has; "
            << spec.where << "; give it an id of its own";
        bytes.entries[token.id].special = token.special;
      } else {
        set(token.id, pattern, token.special);
      }
    }
    spec.merges = {};
  }

  /// One thread's buffers and word cache.
  struct Workspace {
    Bpe::Scratch bpe;
    SplitPattern::Scratch split;
    std::string lossy, normal, word;
    unicode::OffsetMap lossy_map, normal_map;
    std::vector<AddedTokenMatcher::Piece> outer, inner;
    std::vector<size_t> ends, finer;
    std::vector<Span> literal;
  };

  /// Takes a workspace out of the pool, and puts it back.
  class Lease {
   public:
    explicit Lease(const State& state) : state_(state) {
      const std::lock_guard lock(state.mutex);
      if (state.idle.empty()) return;
      workspace_ = std::move(state.idle.back());
      state.idle.pop_back();
    }
    ~Lease() {
      if (!workspace_) return;
      const std::lock_guard lock(state_.mutex);
      state_.idle.push_back(std::move(workspace_));
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Workspace& get() {
      if (!workspace_) workspace_ = std::make_unique<Workspace>();
      return *workspace_;
    }

   private:
    const State& state_;
    std::unique_ptr<Workspace> workspace_;
  };

  void encode(std::string_view text,
              std::span<const Span> literal,
              std::vector<int32_t>& ids,
              std::vector<Span>* offsets) const;
  void encode_words(std::string_view text, Workspace& w, std::vector<int32_t>& ids) const;

  TokenizerSpec spec;
  Bpe bpe;
  std::string hash;
  std::vector<SplitPattern> patterns;
  AddedTokenMatcher exact_tokens, normalized_tokens;
  TokenBytes bytes;
  mutable std::mutex mutex;
  mutable std::vector<std::unique_ptr<Workspace>> idle;
};

/// Normalised text without added tokens.
void Tokenizer::State::encode_words(std::string_view text, Workspace& w, std::vector<int32_t>& ids) const {
  w.ends.assign(1, text.size());
  for (const SplitPattern& pattern : patterns) {
    w.finer.clear();
    size_t begin = 0;
    for (const size_t end : w.ends) {
      const size_t first = w.finer.size();
      pattern.split(text.substr(begin, end - begin), w.split, w.finer);
      for (size_t i = first; i < w.finer.size(); ++i) w.finer[i] += begin;
      begin = end;
    }
    std::swap(w.ends, w.finer);
  }
  size_t begin = 0;
  for (const size_t end : w.ends) {
    const std::string_view word = text.substr(begin, end - begin);
    begin = end;
    if (spec.ignore_merges) {
      w.word.clear();
      for (const char byte : word) unicode::append(w.word, byte_alphabet::character(static_cast<uint8_t>(byte)));
      if (const auto place = spec.vocabulary.find(w.word)) {
        ids.push_back(spec.ids[*place]);
        continue;
      }
    }
    bpe.encode(word, w.bpe, ids);
  }
}

void Tokenizer::State::encode(std::string_view input,
                              std::span<const Span> given_literal,
                              std::vector<int32_t>& ids,
                              std::vector<Span>* offsets) const {
  Lease lease(*this);
  Workspace& w = lease.get();
  const bool is_lossy = unicode::replace_invalid(input, w.lossy, w.lossy_map);
  const std::string_view text = is_lossy ? std::string_view(w.lossy) : input;
  w.literal.assign(given_literal.begin(), given_literal.end());
  std::sort(w.literal.begin(), w.literal.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });

  const auto in_input = [&](Span span) { return is_lossy ? w.lossy_map.original(span) : span; };
  // Bytes from a position of `text` to the end of the literal stretch around it, or 0.
  const auto literal_left = [&](int64_t position) -> size_t {
    if (w.literal.empty()) return 0;
    const int64_t at = in_input({position, position}).begin;
    const auto after = std::upper_bound(
        w.literal.begin(), w.literal.end(), at, [](int64_t p, const Span& span) { return p < span.begin; });
    if (after == w.literal.begin() || at >= std::prev(after)->end) return 0;
    return static_cast<size_t>(std::prev(after)->end - at);
  };
  const auto push = [&](int32_t id, int64_t begin, int64_t end) {
    ids.push_back(id);
    if (offsets) offsets->push_back(in_input({begin, end}));
  };

  w.outer.clear();
  exact_tokens.cut(text, literal_left, w.outer);
  for (const auto& piece : w.outer) {
    const auto base = static_cast<int64_t>(piece.begin);
    if (piece.id >= 0) {
      push(piece.id, base, static_cast<int64_t>(piece.end));
      continue;
    }
    const std::string_view raw = text.substr(piece.begin, piece.end - piece.begin);
    const bool is_changed = spec.nfc && unicode::normalize_nfc(raw, w.normal, w.normal_map);
    const std::string_view normal = is_changed ? std::string_view(w.normal) : raw;
    const auto in_text = [&](size_t begin, size_t end) {
      const Span span = {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
      const Span original = is_changed ? w.normal_map.original(span) : span;
      return Span{base + original.begin, base + original.end};
    };
    w.inner.clear();
    if (normalized_tokens.empty()) {
      w.inner.push_back({0, normal.size(), -1});
    } else {
      normalized_tokens.cut(
          normal, [&](size_t at) { return literal_left(in_text(at, at).begin); }, w.inner);
    }
    for (const auto& part : w.inner) {
      if (part.id >= 0) {
        const Span span = in_text(part.begin, part.end);
        push(part.id, span.begin, span.end);
        continue;
      }
      const size_t first = ids.size();
      encode_words(normal.substr(part.begin, part.end - part.begin), w, ids);
      if (!offsets) continue;
      size_t at = part.begin;
      for (size_t i = first; i < ids.size(); ++i) {
        const size_t end = at + bytes.entries[ids[i]].size;
        offsets->push_back(in_input(in_text(at, end)));
        at = end;
      }
    }
  }
}

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::from_folder(const std::string& folder) {
  return Tokenizer(std::make_unique<State>(read_tokenizer_spec(folder)));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, std::span<const Span> literal) const {
  std::vector<int32_t> ids;
  state_->encode(text, literal, ids, nullptr);
  return ids;
}

Encoding Tokenizer::encode_with_offsets(std::string_view text, std::span<const Span> literal) const {
  Encoding out;
  state_->encode(text, literal, out.ids, &out.offsets);
  return out;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  const TokenBytes& bytes = state_->bytes;
  std::string raw, out;
  for (const int32_t id : ids) {
    if (bytes.knows(id) && !(skip_special && bytes.entries[id].special)) raw += bytes[id];
  }
  unicode::OffsetMap unused;
  return unicode::replace_invalid(raw, out, unused) ? out : raw;
}

std::optional<int32_t> Tokenizer::id(std::string_view token) const {
  for (const AddedToken& added : state_->spec.added) {
    if (added.content == token) return added.id;
  }
  if (const auto place = state_->spec.vocabulary.find(token)) return state_->spec.ids[*place];
  return std::nullopt;
}

int64_t Tokenizer::vocab_size() const {
  return static_cast<int64_t>(state_->bytes.entries.size());
}

const std::string& Tokenizer::content_hash() const {
  return state_->hash;
}

}  // namespace hanok
