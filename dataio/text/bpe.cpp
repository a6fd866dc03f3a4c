#include "dataio/text/bpe.h"

#include <xxhash.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <functional>

#include "base/error.h"
#include "dataio/text/unicode.h"

namespace hanok {
namespace {

constexpr size_t kShortWord = 48;  // up to here looking at every pair beats a heap

uint32_t hash_of(std::string_view text) {
  return static_cast<uint32_t>(XXH3_64bits(text.data(), text.size()));
}

size_t mixed(uint64_t key) {
  key *= 0x9E3779B97F4A7C15u;
  return key ^ key >> 32;
}

}  // namespace

size_t TextTable::slot_of(std::string_view text, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = hash & mask;
  for (; slots_[slot] != 0; slot = (slot + 1) & mask) {
    const size_t i = slots_[slot] - 1;
    if (entries_[i].hash == hash && (*this)[i] == text) break;
  }
  return slot;
}

void TextTable::grow() {
  slots_.assign(std::max<size_t>(64, slots_.size() * 2), 0);
  const size_t mask = slots_.size() - 1;
  for (size_t i = 0; i < entries_.size(); ++i) {
    size_t slot = entries_[i].hash & mask;
    while (slots_[slot] != 0) slot = (slot + 1) & mask;
    slots_[slot] = static_cast<uint32_t>(i + 1);
  }
}

size_t TextTable::insert(std::string_view text) {
  HANOK_REQUIRE(text.size() < UINT32_MAX && entries_.size() < UINT32_MAX - 1, kData)
      << "vocabulary: larger than 32-bit counts";
  if (entries_.size() * 2 >= slots_.size()) grow();
  const uint32_t hash = hash_of(text);
  const size_t slot = slot_of(text, hash);
  if (slots_[slot] != 0) return slots_[slot] - 1;
  entries_.push_back({bytes_.size(), static_cast<uint32_t>(text.size()), hash});
  bytes_ += text;
  slots_[slot] = static_cast<uint32_t>(entries_.size());
  return entries_.size() - 1;
}

std::optional<size_t> TextTable::find(std::string_view text) const {
  if (slots_.empty()) return std::nullopt;
  const size_t slot = slot_of(text, hash_of(text));
  if (slots_[slot] == 0) return std::nullopt;
  return slots_[slot] - 1;
}

namespace byte_alphabet {
namespace {
struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<int16_t, 512> byte{};
  Alphabet() {
    byte.fill(-1);
    char32_t extra = 256;
    for (int b = 0; b < 256; ++b) {
      const bool itself = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      character[b] = itself ? static_cast<char32_t>(b) : extra++;
      byte[character[b]] = static_cast<int16_t>(b);
    }
  }
};
const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}
}  // namespace

char32_t character(uint8_t byte) {
  return alphabet().character[byte];
}

std::optional<std::string> bytes_of(std::string_view token) {
  std::string out;
  for (size_t at = 0; at < token.size(); at += unicode::sequence_length(token[at])) {
    const char32_t c = unicode::decode(token, at);
    if (c >= 512 || alphabet().byte[c] < 0) return std::nullopt;
    out += static_cast<char>(alphabet().byte[c]);
  }
  return out;
}
}  // namespace byte_alphabet

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids, const std::vector<BpeMerge>& merges) : byte_ids_(byte_ids) {
  size_t size = 64;
  while (size < merges.size() * 2) size *= 2;
  pairs_.resize(size);
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& m = merges[rank];
    const uint64_t key = static_cast<uint64_t>(m.left) << 32 | static_cast<uint32_t>(m.right);
    pairs_[slot_of(key)] = {key, static_cast<int32_t>(rank), m.joined};  // a pair given twice keeps its last rank
  }
}

size_t Bpe::slot_of(uint64_t key) const {
  const size_t mask = pairs_.size() - 1;
  size_t slot = mixed(key) & mask;
  while (pairs_[slot].key != kNoKey && pairs_[slot].key != key) slot = (slot + 1) & mask;
  return slot;
}

Bpe::Pair Bpe::pair(int32_t left, int32_t right) const {
  return pairs_[slot_of(static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right))];
}

void Bpe::encode(std::string_view word, Scratch& s, std::vector<int32_t>& ids) const {
  Scratch::Cached* cached = nullptr;
  if (word.size() <= sizeof(Scratch::Cached::key)) {
    cached = &s.cache_[XXH3_64bits(word.data(), word.size()) & (s.cache_.size() - 1)];
    if (cached->key_bytes == word.size() && std::memcmp(cached->key, word.data(), word.size()) == 0) {
      ids.insert(ids.end(), cached->ids.begin(), cached->ids.begin() + cached->num_ids);
      return;
    }
  }
  s.ids_.clear();
  for (const char byte : word) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
    if (id >= 0) s.ids_.push_back(id);
  }
  if (s.ids_.size() > 1) s.ids_.size() <= kShortWord ? merge_short(s) : merge_long(s);
  ids.insert(ids.end(), s.ids_.begin(), s.ids_.end());
  if (cached && s.ids_.size() <= cached->ids.size()) {
    cached->key_bytes = static_cast<uint8_t>(word.size());
    cached->num_ids = static_cast<uint8_t>(s.ids_.size());
    std::memcpy(cached->key, word.data(), word.size());
    std::copy(s.ids_.begin(), s.ids_.end(), cached->ids.begin());
  }
}

/// Lowest rank first, leftmost among equals: by looking at every pair.
void Bpe::merge_short(Scratch& s) const {
  std::array<int32_t, kShortWord> id, rank, joined;
  int n = static_cast<int>(s.ids_.size());
  std::copy(s.ids_.begin(), s.ids_.end(), id.begin());
  const auto look_up = [&](int i) {
    const Pair p = pair(id[i], id[i + 1]);
    rank[i] = p.rank;
    joined[i] = p.joined;
  };
  for (int i = 0; i + 1 < n; ++i) look_up(i);
  while (n > 1) {
    const int best = static_cast<int>(std::min_element(rank.begin(), rank.begin() + n - 1) - rank.begin());
    if (rank[best] == kNoRank) break;
    id[best] = joined[best];
    std::move(id.begin() + best + 2, id.begin() + n, id.begin() + best + 1);
    if (best + 2 < n) {
      std::move(rank.begin() + best + 2, rank.begin() + n - 1, rank.begin() + best + 1);
      std::move(joined.begin() + best + 2, joined.begin() + n - 1, joined.begin() + best + 1);
    }
    --n;
    if (best > 0) look_up(best - 1);
    if (best + 1 < n) look_up(best);
  }
  s.ids_.assign(id.begin(), id.begin() + n);
}

/// The same order by a heap of (rank, position) over a linked list: n log n for a run of any length.
void Bpe::merge_long(Scratch& s) const {
  const auto n = static_cast<int64_t>(s.ids_.size());
  HANOK_REQUIRE(n < INT32_MAX, kData) << "word: got " << n << " bytes, expected fewer than 2^31; split the text";
  auto &id = s.ids_, &rank = s.ranks_, &next = s.next_, &previous = s.previous_;
  rank.assign(n, kNoRank);  // of the pair that begins here; an entry of the queue that does not agree is out of date
  next.resize(n);
  previous.resize(n);
  s.queue_.clear();
  const auto look_up = [&](int32_t i) {
    rank[i] = next[i] < n ? pair(id[i], id[next[i]]).rank : kNoRank;
    return rank[i] != kNoRank;
  };
  const auto entry = [&](int32_t i) { return static_cast<uint64_t>(rank[i]) << 32 | static_cast<uint32_t>(i); };
  for (int32_t i = 0; i < n; ++i) next[i] = i + 1, previous[i] = i - 1;
  for (int32_t i = 0; i < n; ++i) {
    if (look_up(i)) s.queue_.push_back(entry(i));
  }
  std::make_heap(s.queue_.begin(), s.queue_.end(), std::greater<>());
  const auto push = [&](int32_t i) {
    if (!look_up(i)) return;
    s.queue_.push_back(entry(i));
    std::push_heap(s.queue_.begin(), s.queue_.end(), std::greater<>());
  };
  while (!s.queue_.empty()) {
    std::pop_heap(s.queue_.begin(), s.queue_.end(), std::greater<>());
    const auto i = static_cast<int32_t>(s.queue_.back() & UINT32_MAX);
    const auto expected = static_cast<int32_t>(s.queue_.back() >> 32);
    s.queue_.pop_back();
    if (rank[i] != expected) continue;
    const int32_t gone = next[i];
    id[i] = pair(id[i], id[gone]).joined;
    rank[gone] = kNoRank;
    next[i] = next[gone];
    if (next[i] < n) previous[next[i]] = i;
    push(i);
    if (previous[i] >= 0) push(previous[i]);
  }
  size_t kept = 0;
  for (int32_t i = 0; i < n; i = next[i]) id[kept++] = id[i];
  id.resize(kept);
}

}  // namespace hanok
