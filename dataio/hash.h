// XXH3 (64 bits) over what is fed in pieces.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

// Declared here so that a door does not carry xxhash.h.
struct XXH3_state_s;

namespace hanok {

class Hash64 {
 public:
  Hash64();
  void add(const void* data, size_t size);
  /// Text with its length, so that ("ab", "c") and ("a", "bc") differ.
  void add(std::string_view text);
  void add(int64_t number) { add(&number, sizeof number); }
  template <class T>
  void add(const std::vector<T>& values) {
    add(static_cast<int64_t>(values.size()));
    add(values.data(), values.size() * sizeof(T));
  }
  uint64_t value() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

inline std::string hex16(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace hanok
