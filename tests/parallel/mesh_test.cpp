#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "base/error.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

constexpr GroupKind kAllKinds[] = {GroupKind::kTp,
                                   GroupKind::kCp,
                                   GroupKind::kDp,
                                   GroupKind::kPp,
                                   GroupKind::kEp,
                                   GroupKind::kEtp,
                                   GroupKind::kGrad,
                                   GroupKind::kExpertGrad,
                                   GroupKind::kLoss,
                                   GroupKind::kStage,
                                   GroupKind::kWorld};

int expected_size(GroupKind kind, const MeshShape& s) {
  switch (kind) {
    case GroupKind::kTp: return s.tp;
    case GroupKind::kCp: return s.cp;
    case GroupKind::kDp: return s.dp;
    case GroupKind::kPp: return s.pp;
    case GroupKind::kEp: return s.ep;
    case GroupKind::kEtp: return s.etp;
    case GroupKind::kGrad:
    case GroupKind::kLoss: return s.dp * s.cp;
    case GroupKind::kExpertGrad: return s.dp * s.cp * s.tp / (s.ep * s.etp);
    case GroupKind::kStage: return s.dp * s.cp * s.tp;
    case GroupKind::kWorld: return s.world();
  }
  return 0;
}

/// Every shape of at most 16 ranks, with every refold that fits.
std::vector<MeshShape> all_shapes() {
  std::vector<MeshShape> shapes;
  for (int pp = 1; pp <= 16; ++pp) {
    for (int dp = 1; pp * dp <= 16; ++dp) {
      for (int cp = 1; pp * dp * cp <= 16; ++cp) {
        for (int tp = 1; pp * dp * cp * tp <= 16; ++tp) {
          for (int ep = 1; ep <= dp * cp * tp; ++ep) {
            for (int etp = 1; ep * etp <= dp * cp * tp; ++etp) {
              if (dp * cp * tp % (ep * etp) == 0) shapes.push_back({pp, dp, cp, tp, ep, etp});
            }
          }
        }
      }
    }
  }
  return shapes;
}

TEST(Mesh, GroupsOfEveryKindPartitionTheWorldForEveryShapeUpTo16Ranks) {
  const std::vector<MeshShape> shapes = all_shapes();
  ASSERT_GT(shapes.size(), 400u);
  for (const MeshShape& shape : shapes) {
    const Mesh mesh(shape);
    for (const GroupKind kind : kAllKinds) {
      std::vector<int> seen;
      for (const std::vector<int>& group : mesh.groups(kind)) {
        ASSERT_EQ(static_cast<int>(group.size()), expected_size(kind, shape)) << describe(shape) << " " << name(kind);
        ASSERT_TRUE(std::is_sorted(group.begin(), group.end()));
        for (const int rank : group) ASSERT_EQ(mesh.group(kind, rank), group);
        seen.insert(seen.end(), group.begin(), group.end());
      }
      std::sort(seen.begin(), seen.end());
      std::vector<int> world(shape.world());
      std::iota(world.begin(), world.end(), 0);
      ASSERT_EQ(seen, world) << describe(shape) << " " << name(kind);
    }
  }
}

TEST(Mesh, CoordinatesAndRanksAreInverseAndBothFoldsAreOneToOne) {
  for (const MeshShape& shape : all_shapes()) {
    const Mesh mesh(shape);
    std::set<std::array<int, 4>> dense, expert;
    for (int rank = 0; rank < mesh.world(); ++rank) {
      const MeshCoordinates at = mesh.coordinates(rank);
      ASSERT_EQ(mesh.rank_at(at.pp, at.dp, at.cp, at.tp), rank);
      ASSERT_TRUE(at.ep < shape.ep && at.etp < shape.etp);
      dense.insert({at.pp, at.dp, at.cp, at.tp});
      expert.insert({at.pp, at.expert_dp, at.ep, at.etp});
    }
    ASSERT_EQ(static_cast<int>(dense.size()), mesh.world());
    ASSERT_EQ(static_cast<int>(expert.size()), mesh.world());
  }
}

TEST(Mesh, TensorParallelNeighboursAreAdjacentAndGroupsAreOrderedAlongTheirAxis) {
  for (const MeshShape& shape : all_shapes()) {
    const Mesh mesh(shape);
    for (int rank = 0; rank < mesh.world(); ++rank) {
      const MeshCoordinates at = mesh.coordinates(rank);
      const std::vector<int> tp = mesh.group(GroupKind::kTp, rank);
      for (size_t i = 1; i < tp.size(); ++i) ASSERT_EQ(tp[i], tp[i - 1] + 1);
      ASSERT_EQ(tp[at.tp], rank);
      ASSERT_EQ(mesh.group(GroupKind::kDp, rank)[at.dp], rank);
      ASSERT_EQ(mesh.group(GroupKind::kCp, rank)[at.cp], rank);
      ASSERT_EQ(mesh.group(GroupKind::kPp, rank)[at.pp], rank);
      ASSERT_EQ(mesh.group(GroupKind::kEp, rank)[at.ep], rank);
      ASSERT_EQ(mesh.group(GroupKind::kEtp, rank)[at.etp], rank);
      ASSERT_EQ(mesh.group(GroupKind::kGrad, rank)[at.dp * shape.cp + at.cp], rank);
    }
  }
}

TEST(Mesh, GroupOfDpAndCpSkipsTpNeighbours) {
  const Mesh mesh({.dp = 2, .cp = 2, .tp = 2});
  EXPECT_EQ(mesh.group(GroupKind::kGrad, 0), (std::vector<int>{0, 2, 4, 6}));
  EXPECT_EQ(mesh.group(GroupKind::kGrad, 3), (std::vector<int>{1, 3, 5, 7}));
}

TEST(Mesh, ExpertsRefoldTheRanksOfOneStage) {
  const Mesh mesh({.pp = 2, .dp = 2, .tp = 2, .ep = 2, .etp = 2});
  EXPECT_EQ(mesh.group(GroupKind::kEp, 4), (std::vector<int>{4, 6}));
  EXPECT_EQ(mesh.group(GroupKind::kEtp, 4), (std::vector<int>{4, 5}));
  EXPECT_EQ(mesh.group(GroupKind::kExpertGrad, 4), (std::vector<int>{4}));
}

std::string refusal(const MeshShape& shape) {
  return message_of(ErrorKind::kConfig, [&] { Mesh mesh(shape); });
}

TEST(Mesh, RefusesSizesBelowOneByName) {
  EXPECT_NE(refusal({.dp = 0}).find("dp = 0"), std::string::npos);
  EXPECT_NE(refusal({.etp = -1}).find("etp = -1"), std::string::npos);
}

TEST(Mesh, RefusesAnExpertFoldThatDoesNotDivideTheStage) {
  EXPECT_NE(refusal({.dp = 2, .tp = 3, .ep = 4}).find("ep * etp = 4 * 1"), std::string::npos);
  EXPECT_NE(refusal({.pp = 2, .dp = 2, .ep = 4}).find("expected a divisor"), std::string::npos);
}

TEST(Mesh, RefusesARankOutsideTheWorld) {
  EXPECT_THROW(Mesh({.dp = 2}).coordinates(2), Error);
  EXPECT_THROW(Mesh({.dp = 2}).coordinates(-1), Error);
}

TEST(Mesh, DescriptionLeavesOutAxesOfSizeOne) {
  EXPECT_EQ(describe({.pp = 2, .dp = 2, .tp = 2}), "pp2 dp2 tp2");
  EXPECT_EQ(describe({}), "1 rank");
}

}  // namespace
}  // namespace hanok
