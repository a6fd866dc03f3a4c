// What a fuzz target is, and the tools that mutations are made of. The runner is in runner.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace hanok::fuzz {

/// splitmix64: the same inputs on every machine for the same seed.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  size_t below(size_t n) { return static_cast<size_t>(next() % n); }  // n > 0
  bool one_in(size_t n) { return below(n) == 0; }
  /// Small numbers are likelier: 1 in half of the cases, 2 in a quarter, ...
  size_t few(size_t most) {
    size_t n = 1;
    while (n < most && one_in(2)) ++n;
    return n;
  }
  template <class T>
  const T& pick(const std::vector<T>& items) {
    return items[below(items.size())];
  }

 private:
  uint64_t state_;
};

/// Memory that one execution may hold at once. A target names the bound of each phase before it begins.
class Budget {
 public:
  /// Ends the phase before, and begins one in which `bytes` may be held on top of what is held now.
  void begin_phase(std::string name, size_t bytes);
  /// errors: std::length_error naming phase, bytes held and bound, if a phase held more than twice its bound
  void end_phase();
  double worst_ratio() const { return worst_ratio_; }  // of bytes held to bound, over all phases so far

 private:
  std::string name_;
  size_t bound_ = 0;
  double worst_ratio_ = 0;
};

struct Target {
  const char* name;
  size_t max_bytes;  // longer inputs are cut
  std::vector<std::string> (*seeds)();
  /// Changes `input` once; `other` is another input of the corpus.
  void (*mutate)(std::string& input, const std::string& other, Random& random);
  /// Reads `input` as the program does. errors: hanok::Error for what the program refuses; anything else is a finding
  void (*run)(const std::string& input, Budget& budget);
};

/// All targets, in the order of the documentation.
const std::vector<Target>& targets();
extern const std::vector<Target> kStoreTargets, kTextTargets, kImageTargets, kModelTargets;

// Mutations (mutate.cpp, mutate_json.cpp).
/// One change that knows no structure: bits, bytes, numbers in any width, stretches removed, repeated, exchanged.
void mutate_bytes(std::string& input, const std::string& other, Random& random);
/// One of `words` put in or over something.
void mutate_words(std::string& input, const std::vector<std::string>& words, Random& random);
/// One line removed, repeated, moved, taken from `other`, or indented anew.
void mutate_lines(std::string& input, const std::string& other, Random& random);
/// One change that knows JSON: numbers and strings exchanged, members repeated, removed, moved, taken from `other`,
/// values wrapped in many levels. Bytes outside [begin, end) stay.
void mutate_json(std::string& input, size_t begin, size_t end, std::string_view other, Random& random);
inline void mutate_json(std::string& input, const std::string& other, Random& random) {
  mutate_json(input, 0, input.size(), other, random);
}
/// A number that is likely to be mishandled, as text.
std::string odd_number(Random& random);

/// Regular files of tests/data or of tests/fuzz, relative to the repository.
std::string read_source(const std::string& path);
/// A folder of this process in memory where there is one; removed at exit.
const std::string& work_folder();
/// Writes a file of the folder, whole.
void put_file(const std::string& name, std::string_view bytes);

}  // namespace hanok::fuzz
