// The one error type of the project. Grammar of a message:
//   <thing>: got <value>, expected <value>; <where: key, file, tensor, group>; <what to do>
// HANOK_REQUIRE is for anything that input can cause; assert() for what only a programmer can cause.
// Library code never exits: launch/main.cpp alone catches, and turns the kind into an exit code.
#pragma once

#include <charconv>
#include <exception>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace hanok {

enum class ErrorKind {
  kConfig,      // a key, a flag or a combination of them
  kData,        // a sample, an image, a CSV, a tokenizer file
  kShape,       // a tensor or a layout whose sizes do not fit
  kCheckpoint,  // a checkpoint or weight file that is missing, damaged or of another model
  kIo,          // the file system refused: full, read-only, missing rights
  kNumeric,     // non-finite values beyond the limit
  kComm,        // a collective failed or a peer is gone
  kDevice,      // the accelerator failed or lacks something
};

/// Exit code of the program for an error of this kind (documented in launch/README.md).
int exit_code(ErrorKind kind);
std::string_view name(ErrorKind kind);

namespace error_detail {
template <class T>
void append(std::string& out, const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    out += value ? "true" : "false";
  } else if constexpr (std::is_same_v<T, char>) {
    out += value;
  } else if constexpr (std::is_arithmetic_v<T>) {
    char buffer[64];  // std::to_chars prints the shortest text that reads back as the same number
    const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
    out.append(buffer, end);
  } else if constexpr (std::is_convertible_v<const T&, std::string_view>) {
    out += std::string_view(value);
  } else {
    out += '[';
    bool first = true;
    for (const auto& item : value) {
      if (!first) out += ", ";
      first = false;
      append(out, item);
    }
    out += ']';
  }
}
}  // namespace error_detail

/// Text of numbers (shortest round trip), strings, and lists of them: concat("got ", 3, ", expected ", 4).
template <class... Ts>
std::string concat(const Ts&... values) {
  std::string out;
  (error_detail::append(out, values), ...);
  return out;
}

class Error : public std::exception {
 public:
  Error(ErrorKind kind, const char* file, int line) : kind_(kind), file_(file), line_(line) {}
  Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}

  template <class T>
  Error& operator<<(const T& value) {
    error_detail::append(message_, value);
    return *this;
  }
  ErrorKind kind() const { return kind_; }
  const char* what() const noexcept override { return message_.c_str(); }
  const char* file() const { return file_; }
  int line() const { return line_; }

 private:
  ErrorKind kind_;
  std::string message_;
  const char* file_ = "";
  int line_ = 0;
};

}  // namespace hanok

/// HANOK_FAIL(kData) << "image: got " << a << ", expected " << b << "; " << file << "; convert it to PNG";
#define HANOK_FAIL(kind) throw ::hanok::Error(::hanok::ErrorKind::kind, __FILE__, __LINE__)
#define HANOK_REQUIRE(condition, kind) \
  if (condition) [[likely]] {          \
  } else                               \
    HANOK_FAIL(kind)
