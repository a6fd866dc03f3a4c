#include "parallel/param.h"

#include <gtest/gtest.h>

#include <numeric>

#include "base/error.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

ParamSpec cut(std::vector<int64_t> shape, int dim, std::vector<Segment> segments) {
  return {.name = "w", .shape = std::move(shape), .cut_dim = dim, .segments = std::move(segments)};
}

int64_t numel(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

/// Cuts the global tensor by flat_runs into local ones and back; every global value must be spoken for exactly once.
void expect_exact_cover(const ParamSpec& spec, int parts) {
  const int64_t size = numel(spec.shape);
  std::vector<int> holders(size, 0), speakers(size, 0);
  for (int index = 0; index < parts; ++index) {
    const std::vector<int64_t> local = local_shape(spec, index, parts);
    std::vector<int64_t> global_of(numel(local), -1);
    int64_t expected_local = 0;
    for (const FlatRun& run : flat_runs(spec, index, parts)) {
      ASSERT_EQ(run.local_begin, expected_local);
      ASSERT_GT(run.size, 0);
      expected_local += run.size;
      for (int64_t i = 0; i < run.size; ++i) {
        global_of[run.local_begin + i] = run.global_begin + i;
        ++holders[run.global_begin + i];
      }
    }
    ASSERT_EQ(expected_local, numel(local));
    if (spec.cut_dim < 0) {
      for (const int64_t global : global_of) speakers[global] += index == 0;
      continue;
    }
    // The same cut said by ranges along the dim.
    int64_t inner = 1, outer = 1;
    for (int dim = 0; dim < spec.cut_dim; ++dim) outer *= spec.shape[dim];
    for (size_t dim = spec.cut_dim + 1; dim < spec.shape.size(); ++dim) inner *= spec.shape[dim];
    const int64_t global_extent = spec.shape[spec.cut_dim], local_extent = local[spec.cut_dim];
    for (const LocalRange& range : local_ranges(spec, index, parts)) {
      ASSERT_EQ(index % range.replicas, range.replica_index);
      for (int64_t row = 0; row < outer; ++row) {
        for (int64_t i = 0; i < range.size * inner; ++i) {
          const int64_t at_local = (row * local_extent + range.local_begin) * inner + i;
          const int64_t at_global = (row * global_extent + range.global_begin) * inner + i;
          ASSERT_EQ(global_of[at_local], at_global);
          speakers[at_global] += range.replica_index == 0;
        }
      }
    }
  }
  for (int64_t i = 0; i < size; ++i) {
    ASSERT_GE(holders[i], 1);
    ASSERT_EQ(speakers[i], 1) << "parts " << parts << ", value " << i;
  }
}

TEST(LocalRanges, UnionOverRanksCoversTheGlobalTensorExactlyOnce) {
  int checked = 0;
  for (int parts = 1; parts <= 8; ++parts) {
    for (const int64_t unit : {1, 2, 3}) {
      for (const int64_t q : {1, 2, 3, 4, 6, 8, 12}) {
        for (const int64_t kv : {1, 2, 4, 8}) {
          const bool fits = (q % parts == 0 || parts % q == 0) && (kv % parts == 0 || parts % kv == 0);
          if (!fits) continue;
          const std::vector<Segment> segments = {{q * unit, unit}, {kv * unit, unit}, {kv * unit, unit}};
          const int64_t extent = (q + 2 * kv) * unit;
          expect_exact_cover(cut({extent, 3}, 0, segments), parts);
          expect_exact_cover(cut({3, extent}, 1, segments), parts);
          expect_exact_cover(cut({2, extent, 2}, 1, segments), parts);
          ++checked;
        }
      }
    }
    for (int64_t rows = 0; rows <= 20; ++rows) {
      ParamSpec vocab = cut({rows, 2}, 0, {{rows, 1}});
      vocab.uneven = true;
      expect_exact_cover(vocab, parts);
    }
    expect_exact_cover({.name = "whole", .shape = {5, 3}}, parts);
  }
  EXPECT_GT(checked, 150);
}

TEST(LocalRanges, FusedSegmentsAreCutEachOnItsOwn) {
  const ParamSpec spec = cut({16, 8}, 0, {{8, 2}, {4, 2}, {4, 2}});
  const auto ranges = local_ranges(spec, 1, 2);
  ASSERT_EQ(ranges.size(), 3u);
  EXPECT_EQ(ranges[0].global_begin, 4);
  EXPECT_EQ(ranges[1].global_begin, 10);
  EXPECT_EQ(ranges[2].global_begin, 14);
  EXPECT_EQ(ranges[1].local_begin, 4);
  EXPECT_EQ(ranges[2].segment, 2);
  EXPECT_EQ(local_shape(spec, 1, 2), (std::vector<int64_t>{8, 8}));
}

TEST(LocalRanges, FewerUnitsThanRanksAreReplicated) {
  const ParamSpec spec = cut({12, 2}, 0, {{8, 2}, {4, 2}});  // 4 query heads, 2 kv heads over 4 ranks
  const auto ranges = local_ranges(spec, 3, 4);
  ASSERT_EQ(ranges.size(), 2u);
  EXPECT_EQ(ranges[0].replicas, 1);
  EXPECT_EQ(ranges[1].replicas, 2);
  EXPECT_EQ(ranges[1].replica_index, 1);
  EXPECT_EQ(ranges[1].global_begin, 10);
}

TEST(LocalRanges, VocabularyBlocksAreCeilingsAndTheLastMayBeShortOrEmpty) {
  ParamSpec spec = cut({10, 4}, 0, {{10, 1}});
  spec.uneven = true;
  EXPECT_EQ(local_shape(spec, 0, 4)[0], 3);
  EXPECT_EQ(local_shape(spec, 3, 4)[0], 1);
  EXPECT_EQ(local_ranges(spec, 3, 4)[0].global_begin, 9);
  EXPECT_EQ(local_shape(spec, 6, 8)[0], 0);
  EXPECT_TRUE(local_ranges(spec, 6, 8).empty());
  EXPECT_TRUE(flat_runs(spec, 6, 8).empty());
}

TEST(LocalRanges, UnitsThatNeitherDivideNorAreDividedAreRefusedByName) {
  EXPECT_ERROR(error_of([] { local_ranges(cut({6, 4}, 0, {{6, 1}}), 0, 4); }), ErrorKind::kShape, "w: got 6 units");
}

TEST(LocalRanges, SegmentsMustAddUpAndHoldWholeUnits) {
  EXPECT_THROW(local_ranges(cut({6, 4}, 0, {{4, 1}}), 0, 2), Error);
  EXPECT_THROW(local_ranges(cut({6, 4}, 0, {{6, 4}}), 0, 2), Error);
  EXPECT_THROW(local_ranges(cut({6, 4}, 2, {{6, 1}}), 0, 2), Error);
}

TEST(FlatRuns, OnePerSegmentWhenDim0IsCutAndOnePerRowWhenDim1Is) {
  EXPECT_EQ(flat_runs(cut({8, 5}, 0, {{4, 1}, {4, 1}}), 1, 2).size(), 2u);
  EXPECT_EQ(flat_runs(cut({5, 8}, 1, {{8, 1}}), 1, 2).size(), 5u);
  EXPECT_EQ(flat_runs(cut({5, 8}, 1, {{4, 1}, {4, 1}}), 0, 1).size(), 1u);
}

// Of experts: dim 0 over ep, another dim over etp.
TEST(FlatRuns, TwoCutsGiveEveryValueToOneRank) {
  for (const auto& [ep, etp] : std::vector<std::pair<int, int>>{{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 3}}) {
    for (const int inner : {1, 2}) {
      ParamSpec spec = cut({4, 12, 6}, 0, {{4, 1}});
      spec.cut_axis = Axis::kEp;
      spec.inner_dim = inner;
      spec.inner_segments = inner == 1 ? std::vector<Segment>{{6, 1}, {6, 1}} : std::vector<Segment>{{6, 1}};
      const Mesh mesh({.dp = ep * etp, .ep = ep, .etp = etp});
      std::vector<int> holders(numel(spec.shape), 0);
      for (int rank = 0; rank < mesh.world(); ++rank) {
        const Groups groups = make_planned_groups(mesh, rank, false);
        const std::vector<int64_t> local = local_shape(spec, groups);
        EXPECT_EQ(numel(local) * ep * etp, numel(spec.shape));
        EXPECT_EQ(local[0], 4 / ep);
        EXPECT_EQ(local[inner], spec.shape[inner] / etp);
        int64_t next = 0;
        for (const FlatRun& run : flat_runs(spec, groups)) {
          ASSERT_EQ(run.local_begin, next);
          next += run.size;
          for (int64_t i = 0; i < run.size; ++i) {
            ++holders[run.global_begin + i];
            // Its column is one of this rank's, of gate and up alike.
            const int64_t in_expert = (run.global_begin + i) % 72;
            const int64_t column = inner == 1 ? in_expert / 6 % 6 : in_expert % 6;
            EXPECT_EQ(column / (6 / etp), groups.etp->rank());
          }
        }
        EXPECT_EQ(next, numel(local));
      }
      for (const int holder : holders) EXPECT_EQ(holder, 1);
    }
  }
}

TEST(ParamTable, AnUnknownNameIsAnError) {
  ParamTable params(1);
  params[0].spec.name = "a.weight";
  EXPECT_EQ(&find_param(params, "a.weight"), &params[0]);
  EXPECT_THROW(find_param(params, "b.weight"), Error);
}

}  // namespace
}  // namespace hanok
