#include "base/error.h"

#include <gtest/gtest.h>

namespace hanok {

TEST(Error, NumbersPrintAsTheShortestTextThatReadsBack) {
  EXPECT_EQ(concat("lr: got ", 1e-5, ", heads ", 16, ", on ", true), "lr: got 1e-05, heads 16, on true");
  EXPECT_EQ(concat(std::vector<int>{1, 2, 3}), "[1, 2, 3]");
}

TEST(Error, RequireThrowsWithKindAndMessage) {
  try {
    const int heads = 6;
    HANOK_REQUIRE(heads % 4 == 0, kShape) << "heads: got " << heads << ", expected a multiple of 4; model.decoder.heads";
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kShape);
    EXPECT_STREQ(error.what(), "heads: got 6, expected a multiple of 4; model.decoder.heads");
  }
}

TEST(Error, EveryKindHasItsOwnExitCode) {
  std::vector<int> codes;
  for (int kind = 0; kind <= static_cast<int>(ErrorKind::kDevice); ++kind) codes.push_back(exit_code(static_cast<ErrorKind>(kind)));
  for (size_t i = 0; i < codes.size(); ++i)
    for (size_t j = i + 1; j < codes.size(); ++j) EXPECT_NE(codes[i], codes[j]);
}

}  // namespace hanok
