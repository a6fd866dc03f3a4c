// Ranks of one host see how far the others are; of other hosts nothing is known.
#include "parallel/progress_board.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/error.h"

namespace hanok {
namespace {

/// The boards of ranks 2 and 3, as two processes of one host have them. Rank 7 is on another one.
struct Host {
  std::string path = concat(testing::TempDir(), "/board-", ::getpid());
  std::vector<int> ranks = {2, 3};
  std::shared_ptr<ProgressBoard> first = std::make_shared<ProgressBoard>(path, ranks, 0);
  std::shared_ptr<ProgressBoard> second = std::make_shared<ProgressBoard>(path, ranks, 1);
  ~Host() { ::unlink(path.c_str()); }
};

using Ranks = std::vector<int>;

TEST(ProgressBoard, OnlyThoseWhoHaveNotComeAreAwaited) {
  const Host host;
  const ProgressLine of_2(host.first, 5, {2, 3}, 2), of_3(host.second, 5, {2, 3}, 3);
  of_2.advance(4);
  EXPECT_EQ(of_2.awaited(4), Ranks({3}));
  EXPECT_EQ(of_3.awaited(4), Ranks({2}));  // all others have come: what they came for did not end
  of_3.advance(3);
  EXPECT_EQ(of_2.awaited(4), Ranks({3}));
}

TEST(ProgressBoard, RanksOfOtherHostsMayBeLate) {
  const Host host;
  const ProgressLine of_2(host.first, 0, {2, 3, 7}, 2), of_3(host.second, 0, {2, 3, 7}, 3);
  of_3.advance(9);
  EXPECT_EQ(of_2.awaited(9), Ranks({7}));
  EXPECT_EQ(of_2.awaited(10), Ranks({3, 7}));
}

TEST(ProgressBoard, LinesDoNotMix) {
  const Host host;
  const ProgressLine one(host.second, 1, {2, 3}, 3), other(host.first, 2, {2, 3}, 2);
  one.advance(100);
  EXPECT_EQ(host.first->cell(3, 1)->load(), 100);
  EXPECT_EQ(host.first->cell(3, 2)->load(), 0);
  EXPECT_EQ(host.first->cell(2, 1)->load(), 0);
}

TEST(ProgressBoard, WithoutAFileOrALineNothingIsKnown) {
  const auto nowhere = std::make_shared<ProgressBoard>("/nowhere/board", Ranks({0, 1}), 0);
  const ProgressLine line(nowhere, 0, {0, 1}, 0);
  line.advance(1);
  EXPECT_EQ(line.awaited(1), Ranks({1}));
  const Host host;
  EXPECT_EQ(host.first->cell(2, ProgressBoard::kLines), nullptr);
  EXPECT_EQ(host.first->cell(9, 0), nullptr);
}

}  // namespace
}  // namespace hanok
