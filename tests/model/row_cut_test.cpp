#include "model/row_cut.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <iostream>
#include <numeric>
#include <random>

#include "model/vision_cut.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

Tensor starts_of(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> starts{0};
  for (const int32_t length : lengths) starts.push_back(starts.back() + length);
  return at::tensor(starts, at::kInt);
}

double imbalance(const Tensor& starts, const RowCut& cut) {
  const std::vector<double> pairs = pairs_by_rank(starts, cut);
  const double mean = std::accumulate(pairs.begin(), pairs.end(), 0.0) / static_cast<double>(pairs.size());
  return *std::max_element(pairs.begin(), pairs.end()) / mean - 1;
}

void expect_every_row_once(const RowCut& cut, int64_t rows, int parts) {
  std::vector<int> seen(rows, 0);
  ASSERT_EQ(cut.of_rank.size(), static_cast<size_t>(parts));
  for (const auto& intervals : cut.of_rank) {
    int64_t own = 0, last = -1;
    for (const RowInterval& interval : intervals) {
      EXPECT_GT(interval.begin, last);  // rising, and apart: neighbours are joined
      EXPECT_GT(interval.size(), 0);
      last = interval.end;
      own += interval.size();
      for (int64_t t = interval.begin; t < interval.end; ++t) ++seen.at(t);
    }
    EXPECT_EQ(own, rows / parts);
  }
  for (int64_t t = 0; t < rows; ++t) EXPECT_EQ(seen[t], 1) << "row " << t;
}

TEST(RowCut, OneSampleIsCutLikeATriangle) {
  for (const int parts : {2, 4, 8}) {
    const Tensor starts = starts_of({4096});
    const RowCut cut = cut_rows(starts, parts);
    expect_every_row_once(cut, 4096, parts);
    EXPECT_LT(imbalance(starts, cut), 1e-3) << parts;
    for (const auto& intervals : cut.of_rank) EXPECT_LE(intervals.size(), 2u);  // coarse chunks are enough
  }
}

TEST(RowCut, RandomPackingsAreBalancedAndEveryRowIsHeldOnce) {
  std::mt19937 random(7);
  double worst = 0, sum = 0;
  int count = 0;
  for (int round = 0; round < 200; ++round) {
    const int parts = std::array{2, 3, 4, 6, 8}[round % 5];
    std::vector<int32_t> lengths;
    int32_t rows = 0;
    while (rows < 8192) {
      const double size = std::exp(std::uniform_real_distribution<>(2, 9)(random));  // 7 to 8,100
      lengths.push_back(static_cast<int32_t>(std::min<double>(size, 8192 - rows)));
      rows += lengths.back();
    }
    if (rows % parts != 0) lengths.push_back(parts - rows % parts);
    const Tensor starts = starts_of(lengths);
    const RowCut cut = cut_rows(starts, parts);
    expect_every_row_once(cut, starts[-1].item<int32_t>(), parts);
    worst = std::max(worst, imbalance(starts, cut));
    sum += imbalance(starts, cut);
    ++count;
  }
  std::cout << "imbalance of pairs: mean " << sum / count << ", worst " << worst << "\n";
  EXPECT_LT(worst, 0.04);
  EXPECT_LT(sum / count, 0.015);
}

TEST(RowCut, SmallAndOddSizesAreCutToo) {
  for (const int parts : {1, 2, 3, 4, 7}) {
    for (int64_t per_rank = 0; per_rank < 40; ++per_rank) {
      const auto rows = static_cast<int32_t>(per_rank * parts);
      for (const int32_t first : {0, rows / 3, rows}) {
        const RowCut cut = cut_rows(starts_of({first, rows - first}), parts);
        if (parts == 1) {
          EXPECT_FALSE(cut.is_cut());
        } else {
          expect_every_row_once(cut, rows, parts);
        }
      }
    }
  }
  EXPECT_ERROR(error_of([&] { cut_rows(starts_of({7}), 2); }), ErrorKind::kShape, "multiple of cp = 2");
}

TEST(RowCut, PlacesTellWhereRowsLie) {
  const RowCut cut = cut_rows(starts_of({50, 14}), 4);
  const RowCut::Places places = cut.places();
  for (int r = 0; r < 4; ++r) {
    const Tensor rows = cut.rows_of(r);
    for (int64_t i = 0; i < rows.size(0); ++i) {
      EXPECT_EQ(places.rank_T[rows[i]].item<int64_t>(), r);
      EXPECT_EQ(places.row_T[rows[i]].item<int64_t>(), i);
    }
  }
}

// Every token goes from the rank that makes it to the row that waits for it.
TEST(VisionCut, EveryTokenArrivesAtItsRow) {
  const Tensor grid = at::tensor({1, 4, 6, 3, 2, 2, 1, 8, 8, 1, 2, 4}, at::kLong).view({-1, 3});
  const int64_t merge = 2, tokens = 6 + 3 + 16 + 2;
  std::vector<int64_t> index;
  for (int64_t m = 0; m < tokens; ++m) index.push_back(3 + m + m / 9);
  for (const int parts : {2, 3, 4, 8}) {
    const RowCut cut = cut_rows(starts_of({20, 48 - 20}), parts);
    std::vector<VisionCut> of_rank;
    std::vector<std::vector<int64_t>> made(parts);  // token of the micro-batch, in the order of the rank's frames
    int64_t patches = 0, stand_ins = 0;
    for (int r = 0; r < parts; ++r) {
      of_rank.push_back(
          cut_vision(grid, at::tensor(index, at::kLong), cut, r, {.merge = merge, .linear_patches = 6 * 32.0}));
      for (const RowInterval& interval : of_rank[r].patches) {
        patches += interval.size();
        for (int64_t p = interval.begin; p < interval.end; p += merge * merge) made[r].push_back(p / (merge * merge));
      }
      stand_ins += of_rank[r].stand_in_patches;
      const auto own = of_rank[r].grid_I3;
      EXPECT_EQ((own.select(1, 0) * own.select(1, 1) * own.select(1, 2)).sum().item<int64_t>(),
                static_cast<int64_t>(made[r].size()) * merge * merge + of_rank[r].stand_in_patches);
    }
    EXPECT_EQ(patches, tokens * merge * merge);
    EXPECT_EQ(stand_ins, parts == 8 ? 2 * merge * merge : 0);  // six frames
    for (int to = 0; to < parts; ++to) {
      const Tensor rows = cut.rows_of(to);
      int64_t arrived = 0;
      for (int from = 0; from < parts; ++from) {
        const Splits& splits = of_rank[from].exchange.splits;
        ASSERT_EQ(splits.send[to], of_rank[to].exchange.splits.receive[from]);
        const int64_t before = std::accumulate(splits.send.begin(), splits.send.begin() + to, int64_t{0});
        for (int64_t i = 0; i < splits.send[to]; ++i, ++arrived) {
          const int64_t token = made[from].at(of_rank[from].exchange.order_S[before + i].item<int64_t>());
          const int64_t row = of_rank[to].vision_index_M[arrived].item<int64_t>();
          EXPECT_EQ(rows[row].item<int64_t>(), index[token]);
        }
      }
      EXPECT_EQ(arrived, of_rank[to].vision_index_M.size(0));
    }
  }
  EXPECT_ERROR(error_of([&] {
                 cut_vision(grid, at::tensor({1, 2}, at::kLong), cut_rows(starts_of({8}), 2), 0, {.merge = merge});
               }),
               ErrorKind::kShape,
               "placeholders");
}

}  // namespace
}  // namespace hanok
