#include "dataio/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "base/error.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

Sampler::Source source_of(int64_t size, uint64_t seed, double share, int64_t longest = 300) {
  std::mt19937_64 random(seed);
  Sampler::Source source;
  source.share = share;
  for (int64_t i = 0; i < size; ++i) {
    source.lengths.push_back(1 + static_cast<int64_t>(random() % longest));
    source.indices.push_back(3 * i);  // numbers in the dataset need not be dense
  }
  return source;
}

TEST(Sampler, SharesWhoseSumIsInfiniteAreSharesAllTheSame) {
  const Sampler huge({source_of(50, 1, 1e308), source_of(50, 2, 1e308)}, 300, 4, 20, 7);
  const Sampler small({source_of(50, 1, 1), source_of(50, 2, 1)}, 300, 4, 20, 7);
  Cursor a, b;
  EXPECT_EQ(huge.next(a), small.next(b));
  EXPECT_EQ(huge.steps_for_epochs(1), small.steps_for_epochs(1));
}

TEST(Sampler, EpochsBeyondAllStepsAreRefused) {
  const Sampler sampler({source_of(50, 1, 1)}, 300, 1, 20, 7);
  EXPECT_ERROR(error_of([&] { sampler.steps_for_epochs(1e300); }), ErrorKind::kConfig, "epochs: got 1e+300");
}

TEST(Permuted, VisitsEveryNumberOnce) {
  for (int64_t size : {1, 2, 3, 7, 64, 65, 1000, 4097}) {
    for (uint64_t key : {0u, 1u, 77u}) {
      std::set<int64_t> seen;
      for (int64_t i = 0; i < size; ++i) {
        const int64_t p = permuted(key, i, size);
        ASSERT_GE(p, 0);
        ASSERT_LT(p, size);
        seen.insert(p);
      }
      EXPECT_EQ(static_cast<int64_t>(seen.size()), size);
    }
  }
}

TEST(Permuted, DependsOnTheKeyAndLooksShuffled) {
  constexpr int64_t kSize = 10000;
  int64_t equal = 0, fixed = 0, neighbours = 0;
  for (int64_t i = 0; i < kSize; ++i) {
    equal += permuted(1, i, kSize) == permuted(2, i, kSize);
    fixed += permuted(1, i, kSize) == i;
    neighbours += i > 0 && std::abs(permuted(1, i, kSize) - permuted(1, i - 1, kSize)) == 1;
  }
  // Each has expectation 1 or 2 for a random permutation; 12 is beyond six deviations.
  EXPECT_LT(equal, 12);
  EXPECT_LT(fixed, 12);
  EXPECT_LT(neighbours, 12);
}

std::vector<std::vector<int>> plain_first_fit_decreasing(const std::vector<int64_t>& lengths, int64_t capacity) {
  std::vector<int> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return lengths[a] > lengths[b]; });
  std::vector<std::vector<int>> groups;
  std::vector<int64_t> room;
  for (int i : order) {
    size_t bin = 0;
    while (bin < groups.size() && room[bin] < lengths[i]) ++bin;
    if (bin == groups.size()) {
      groups.emplace_back();
      room.push_back(capacity);
    }
    groups[bin].push_back(i);
    room[bin] -= lengths[i];
  }
  return groups;
}

TEST(FirstFitDecreasing, EqualsTheQuadraticDefinition) {
  std::mt19937_64 random(5);
  for (int trial = 0; trial < 200; ++trial) {
    const int64_t capacity = 1 + static_cast<int64_t>(random() % 100);
    std::vector<int64_t> lengths(random() % 60);
    for (auto& length : lengths) length = static_cast<int64_t>(random() % (capacity + 1));
    EXPECT_EQ(first_fit_decreasing(lengths, capacity), plain_first_fit_decreasing(lengths, capacity));
  }
}

TEST(FirstFitDecreasing, RefusesWhatFitsNoRow) {
  EXPECT_ERROR(error_of([] {
                 first_fit_decreasing({3, 11}, 10);
               }),
               ErrorKind::kShape,
               "got 11, expected at most the row's 10");
}

TEST(Sampler, ShowsEachSampleOncePerEpochWhateverTheWindow) {
  constexpr int64_t kSize = 501;
  for (int64_t window : {10, 64, 501, 100000}) {
    const Sampler sampler({source_of(kSize, 1, 1)}, 512, 3, window, 9);
    std::map<int64_t, int> seen;
    Cursor cursor;
    // An epoch ends inside a step when rows and steps do not divide, so four epochs are counted to within one window.
    int64_t num_seen = 0;
    while (num_seen < 4 * kSize) {
      for (const Row& row : sampler.next(cursor)) {
        for (const SampleRef& ref : row) {
          ++seen[ref.index];
          ++num_seen;
        }
      }
    }
    EXPECT_EQ(static_cast<int64_t>(seen.size()), kSize);
    const int64_t slack = (std::min(window, kSize) + kSize - 1) / kSize;
    for (const auto& [index, times] : seen) {
      EXPECT_EQ(index % 3, 0);
      EXPECT_NEAR(times, 4, static_cast<double>(slack)) << index;
    }
  }
}

TEST(Sampler, FirstWindowOfOneDatasetIsExactlyOneEpoch) {
  const Sampler sampler({source_of(300, 2, 1)}, 300, 1, 4096, 4);
  std::multiset<int64_t> seen;
  Cursor cursor;
  while (cursor.window == 0) {
    for (const Row& row : sampler.next(cursor)) {
      for (const SampleRef& ref : row) seen.insert(ref.index);
    }
  }
  EXPECT_EQ(seen.size(), 300u);
  EXPECT_EQ(std::set<int64_t>(seen.begin(), seen.end()).size(), 300u);
}

TEST(Sampler, EverySourceGetsItsShareAndItsOwnEpochs) {
  const Sampler sampler({source_of(100, 1, 3), source_of(1000, 2, 1), source_of(40, 3, 0.01)}, 600, 4, 64, 1);
  std::array<int64_t, 3> draws{};
  std::array<std::map<int64_t, int>, 3> times;
  Cursor cursor;
  while (cursor.window < 200) {
    for (const Row& row : sampler.next(cursor)) {
      for (const SampleRef& ref : row) {
        ++draws[ref.dataset];
        ++times[ref.dataset][ref.index];
      }
    }
  }
  const double total = static_cast<double>(draws[0] + draws[1] + draws[2]);
  EXPECT_NEAR(draws[0] / total, 3 / 4.01, 0.01);
  EXPECT_NEAR(draws[1] / total, 1 / 4.01, 0.01);
  EXPECT_NEAR(draws[2] / total, 0.01 / 4.01, 0.001);
  for (int s : {0, 1, 2}) {
    int least = 1 << 30, most = 0;
    for (const auto& [index, count] : times[s]) least = std::min(least, count), most = std::max(most, count);
    // Cut anywhere, a stream of epochs shows any two samples equally often up to one, and a window more.
    EXPECT_LE(most - least, 2) << "source " << s;
  }
}

TEST(Sampler, RowsFitAndStepsAreFull) {
  const Sampler sampler({source_of(400, 8, 1), source_of(50, 9, 2)}, 300, 7, 128, 3);
  Cursor cursor;
  for (int step = 0; step < 50; ++step) {
    const std::vector<Row> rows = sampler.next(cursor);
    EXPECT_EQ(rows.size(), 7u);
    for (const Row& row : rows) EXPECT_FALSE(row.empty());
  }
  EXPECT_EQ(cursor.step, 50);
}

TEST(Sampler, AnyStepIsFoundWithoutWalkingThere) {
  const Sampler sampler({source_of(400, 8, 1), source_of(50, 9, 2)}, 300, 7, 128, 3);
  Cursor walking;
  for (int64_t step = 0; step < 60; ++step) {
    const Cursor jumped = sampler.at_step(step);
    EXPECT_EQ(jumped, walking) << step;
    Cursor again = jumped;
    EXPECT_EQ(sampler.next(again), sampler.next(walking)) << step;
  }
}

TEST(Sampler, IsAPureFunctionOfTheSeed) {
  const auto rows = [](uint64_t seed, int64_t step) {
    const Sampler sampler({source_of(400, 8, 1)}, 300, 4, 128, seed);
    Cursor cursor = sampler.at_step(step);
    return sampler.next(cursor);
  };
  EXPECT_EQ(rows(1, 11), rows(1, 11));
  EXPECT_NE(rows(1, 11), rows(2, 11));
  EXPECT_NE(rows(1, 11), rows(1, 12));
}

TEST(Sampler, EveryEpochAndEverySeedHasAnOrderOfItsOwn) {
  // Windows smaller than the data: which samples come first is the order of the stream.
  const auto first_of_epoch = [](uint64_t seed, int64_t epoch) {
    const Sampler sampler({source_of(640, 8, 1)}, 300, 1, 64, seed);
    std::set<int64_t> seen;
    for (Cursor cursor{.window = 10 * epoch}; cursor.window == 10 * epoch;) {
      const std::vector<Row> rows = sampler.next(cursor);
      for (const SampleRef& ref : rows[0]) seen.insert(ref.index);
    }
    return seen;
  };
  const auto num_common = [](const std::set<int64_t>& a, const std::set<int64_t>& b) {
    return std::count_if(a.begin(), a.end(), [&](int64_t index) { return b.count(index) > 0; });
  };
  EXPECT_EQ(first_of_epoch(1, 0).size(), 64u);
  // 64 of 640 twice at random have 6.4 in common; six deviations are 14.
  EXPECT_LT(num_common(first_of_epoch(1, 0), first_of_epoch(1, 1)), 21);
  EXPECT_LT(num_common(first_of_epoch(1, 0), first_of_epoch(2, 0)), 21);
  EXPECT_LT(num_common(first_of_epoch(1, 1), first_of_epoch(1, 2)), 21);
}

TEST(Sampler, RowsOfAWindowAreNotSortedByLength) {
  const Sampler::Source source = source_of(2000, 8, 1, 400);
  const Sampler sampler({source}, 400, 1, 2000, 3);
  Cursor cursor;
  std::vector<int64_t> longest;
  while (cursor.window == 0) {
    const Row row = sampler.next(cursor)[0];
    longest.push_back(source.lengths[row[0].index / 3]);
  }
  int64_t falls = 0;
  for (size_t i = 1; i < longest.size(); ++i) falls += longest[i] <= longest[i - 1];
  EXPECT_NEAR(static_cast<double>(falls) / static_cast<double>(longest.size()), 0.5, 0.1);
}

TEST(Sampler, EpochsBecomeSteps) {
  const Sampler sampler({source_of(300, 2, 1)}, 300, 4, 4096, 4);
  for (double epochs : {1.0, 2.0, 5.0}) {
    const int64_t steps = sampler.steps_for_epochs(epochs);
    Cursor cursor;
    std::map<int64_t, int> seen;
    for (int64_t step = 0; step < steps; ++step) {
      for (const Row& row : sampler.next(cursor)) {
        for (const SampleRef& ref : row) ++seen[ref.index];
      }
    }
    EXPECT_EQ(seen.size(), 300u);
    for (const auto& [index, times] : seen) EXPECT_GE(times, static_cast<int>(epochs));
    EXPECT_LE(cursor.window, static_cast<int64_t>(epochs));
  }
  EXPECT_GE(sampler.steps_for_epochs(1e-9), 1);
}

TEST(Sampler, SaysWhatIsWrongWithTheMixture) {
  const auto message = [](const std::vector<Sampler::Source>& sources) {
    return message_of(ErrorKind::kConfig, [&] { Sampler(sources, 300, 1, 10, 1); });
  };
  EXPECT_NE(message({}).find("got no dataset"), std::string::npos);
  EXPECT_NE(message({source_of(3, 1, 1), {}}).find("dataset 1 of the mixture: got no usable sample"),
            std::string::npos);
  EXPECT_NE(message({source_of(3, 1, 0)}).find("mixture share of dataset 0: got 0"), std::string::npos);
}

}  // namespace
}  // namespace hanok
