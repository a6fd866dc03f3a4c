// Byte-level BPE: a vocabulary of byte strings, merges in order of rank, and words -> ids.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hanok {

/// Texts of one file in one allocation, with a hash index: text -> its place in the order of insertion.
class TextTable {
 public:
  /// The place of `text`, added if it is new.
  size_t insert(std::string_view text);
  std::optional<size_t> find(std::string_view text) const;
  size_t size() const { return entries_.size(); }
  std::string_view operator[](size_t i) const {
    return std::string_view(bytes_).substr(entries_[i].begin, entries_[i].size);
  }

 private:
  struct Entry {
    size_t begin;
    uint32_t size;
    uint32_t hash;
  };
  size_t slot_of(std::string_view text, uint32_t hash) const;
  void grow();

  std::string bytes_;
  std::vector<Entry> entries_;
  std::vector<uint32_t> slots_;  // place + 1, or 0
};

/// The characters that stand for bytes in vocabulary files (GPT-2's alphabet: printable ASCII as itself, a space as
/// U+0120).
namespace byte_alphabet {
char32_t character(uint8_t byte);
/// The bytes that a token's text stands for; nothing if a character is outside the alphabet.
std::optional<std::string> bytes_of(std::string_view token);
}  // namespace byte_alphabet

/// A merge as ids of `left` and `right` -> id of both joined. The place in the list is the rank.
struct BpeMerge {
  int32_t left, right, joined;
};

/// Immutable; any number of threads may encode at once, each with its own Scratch.
class Bpe {
 public:
  /// byte_ids[b] is the id of byte b alone, or -1 if the vocabulary lacks it (such bytes give no token).
  Bpe(const std::array<int32_t, 256>& byte_ids, const std::vector<BpeMerge>& merges);

  class Scratch {
    friend class Bpe;
    struct Cached {  // one cache line
      uint8_t key_bytes = 0, num_ids = 0;
      char key[30];
      std::array<int32_t, 8> ids;
    };
    static_assert(sizeof(Cached) == 64);
    std::vector<Cached> cache_ = std::vector<Cached>(size_t{1} << 15);
    std::vector<int32_t> ids_, ranks_, next_, previous_;
    std::vector<uint64_t> queue_;
  };

  /// Appends the ids of one word; each stands for as many bytes as its token has.
  void encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;

 private:
  struct Pair {
    uint64_t key = kNoKey;  // left << 32 | right
    int32_t rank = kNoRank, joined = -1;
  };
  static constexpr uint64_t kNoKey = ~uint64_t{0};
  static constexpr int32_t kNoRank = INT32_MAX;

  size_t slot_of(uint64_t key) const;
  Pair pair(int32_t left, int32_t right) const;
  void merge_short(Scratch& scratch) const;
  void merge_long(Scratch& scratch) const;

  std::array<int32_t, 256> byte_ids_;
  std::vector<Pair> pairs_;  // open addressing, a power of two, at most half full
};

}  // namespace hanok
