// Which rank stands where. Pure arithmetic: no communication, no libtorch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hanok {

enum class Axis { kTp, kCp, kDp, kPp, kEp };

/// Sizes of the parallel axes. world = pp * dp * cp * tp. ep refolds the ranks of one pipeline stage (dp x cp x tp)
/// into (expert_dp, ep, etp) with etp fastest, so that experts choose their own factorisation of the same ranks.
struct MeshShape {
  int pp = 1, dp = 1, cp = 1, tp = 1;
  int ep = 1, etp = 1;
  int world() const { return pp * dp * cp * tp; }
  friend bool operator==(const MeshShape&, const MeshShape&) = default;
};

struct MeshCoordinates {
  int pp = 0, dp = 0, cp = 0, tp = 0;
  int ep = 0, etp = 0, expert_dp = 0;
  friend bool operator==(const MeshCoordinates&, const MeshCoordinates&) = default;
};

/// The named groups of groups.h.
enum class GroupKind {
  kTp,
  kCp,
  kDp,
  kPp,
  kEp,          // ranks that hold different experts
  kEtp,         // tensor parallel inside an expert
  kGrad,        // dp x cp: ranks that hold the same dense weights; gradients are summed and ZeRO-1 shards live here
  kExpertGrad,  // expert_dp: ranks that hold the same experts
  kLoss,        // dp x cp: ranks that hold different tokens
  kStage,       // all ranks of one pipeline stage
  kWorld,
};

class Mesh {
 public:
  /// errors: kConfig if a size is < 1, or ep * etp does not divide dp * cp * tp.
  explicit Mesh(const MeshShape& shape);
  const MeshShape& shape() const { return shape_; }
  int world() const { return shape_.world(); }
  /// tp fastest, then cp, dp, pp.
  MeshCoordinates coordinates(int rank) const;
  int rank_at(int pp, int dp, int cp, int tp) const;
  /// Ranks of the group of this kind that contains `rank`, ascending along the axis.
  std::vector<int> group(GroupKind kind, int rank) const;
  /// All groups of this kind; they partition the world. Every rank must create every group in this order.
  std::vector<std::vector<int>> groups(GroupKind kind) const;

 private:
  MeshShape shape_;
};

std::string_view name(GroupKind kind);
/// "pp2 dp2 tp2" (axes of size 1 are left out; "1 rank" if all are).
std::string describe(const MeshShape& shape);

}  // namespace hanok
