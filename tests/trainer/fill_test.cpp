// Values of files come to their places whatever the threads and stretches, converted where the dtype is another.
#include "trainer/fill.h"

#include <gtest/gtest.h>

#include <mutex>
#include <set>

#include "base/error.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

/// Reads as 1000 * which + index.
Filling numbered(int which, int64_t size, at::ScalarType stored, at::ScalarType wanted) {
  return {at::full({size}, -1, wanted), stored, [which](int64_t begin, Tensor& host) {
            host.copy_(at::arange(begin, begin + host.numel(), at::kDouble) + 1000 * which);
          }};
}

TEST(Fill, EveryValueComesToItsPlace) {
  for (const int64_t threads : {1, 3, 8})
    for (const int64_t stretch : {1, 7, 64, 1000}) {
      std::vector<Filling> fillings;
      int which = 0;
      for (const int64_t size : {64, 1, 0, 37, 200}) {
        fillings.push_back(numbered(which, size, at::kFloat, which % 2 == 0 ? at::kDouble : at::kFloat));
        ++which;
      }
      fill(fillings, at::kCPU, {.threads = threads, .stretch = stretch});
      which = 0;
      for (const Filling& filling : fillings) {
        const Tensor expected = at::arange(filling.to.numel(), at::kDouble) + 1000 * which++;
        EXPECT_TRUE(at::equal(filling.to.to(at::kDouble), expected)) << threads << " " << stretch;
      }
    }
}

TEST(Fill, NoStretchIsLongerThanAsked) {
  std::mutex mutex;
  std::multiset<int64_t> sizes;
  Filling filling{at::empty({100}), at::kFloat, [&](int64_t, Tensor& host) {
                    const std::lock_guard lock(mutex);
                    sizes.insert(host.numel());
                  }};
  fill({filling}, at::kCPU, {.threads = 4, .stretch = 30});
  EXPECT_EQ(sizes, (std::multiset<int64_t>{30, 30, 30, 10}));
}

TEST(Fill, WhatAReadThrowsComesOut) {
  Filling broken = numbered(0, 100, at::kFloat, at::kFloat);
  broken.read = [](int64_t begin, Tensor&) {
    HANOK_REQUIRE(begin < 50, kCheckpoint) << "stretch: got one from " << begin << ", expected less";
  };
  EXPECT_ERROR(error_of([&] { fill({broken}, at::kCPU, {.threads = 3, .stretch = 10}); }),
               ErrorKind::kCheckpoint,
               "got one from 50");
}

TEST(Fill, NothingToFillIsDone) {
  fill({}, at::kCPU);
  fill({numbered(0, 0, at::kFloat, at::kFloat)}, at::kCPU);
}

}  // namespace
}  // namespace hanok
