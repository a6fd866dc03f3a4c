// What a body throws, for tests of messages.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "base/error.h"

namespace hanok {

inline Error error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorKind::kNumeric, "nothing was thrown");
}

/// Its message, of an error of that kind.
inline std::string message_of(ErrorKind kind, const std::function<void()>& body) {
  const Error error = error_of(body);
  EXPECT_EQ(name(error.kind()), name(kind)) << error.what();
  return error.what();
}

}  // namespace hanok

#define EXPECT_ERROR(error, kind_, part)                                                                          \
  do {                                                                                                            \
    const ::hanok::Error got_ = (error);                                                                          \
    EXPECT_EQ(static_cast<int>(got_.kind()), static_cast<int>(kind_)) << got_.what();                             \
    EXPECT_NE(std::string(got_.what()).find(part), std::string::npos) << got_.what() << "\nexpected: " << (part); \
  } while (false)
