#include "parallel/mesh.h"

#include "base/error.h"

namespace hanok {

namespace {
// Ranks of one pipeline stage are numbered 0 .. dp * cp * tp - 1 in two ways: (dp, cp, tp) and (expert_dp, ep, etp).
int stage_size(const MeshShape& shape) {
  return shape.dp * shape.cp * shape.tp;
}
}  // namespace

Mesh::Mesh(const MeshShape& shape) : shape_(shape) {
  const std::pair<std::string_view, int> sizes[] = {
      {"pp", shape.pp}, {"dp", shape.dp}, {"cp", shape.cp}, {"tp", shape.tp}, {"ep", shape.ep}, {"etp", shape.etp}};
  for (const auto& [axis, size] : sizes) {
    HANOK_REQUIRE(size >= 1, kConfig) << "mesh: got " << axis << " = " << size << ", expected at least 1; "
                                      << "key parallel." << axis << "; set it to 1 to leave the axis out";
  }
  HANOK_REQUIRE(stage_size(shape) % (shape.ep * shape.etp) == 0, kConfig)
      << "mesh: got ep * etp = " << shape.ep << " * " << shape.etp
      << ", expected a divisor of dp * cp * tp = " << shape.dp << " * " << shape.cp << " * " << shape.tp
      << "; keys parallel.ep, parallel.etp; "
      << "experts are cut over the ranks of one pipeline stage";
}

MeshCoordinates Mesh::coordinates(int rank) const {
  HANOK_REQUIRE(rank >= 0 && rank < world(), kConfig)
      << "mesh: got rank " << rank << ", expected 0 to " << world() - 1 << "; " << describe(shape_)
      << "; start as many processes as the mesh has ranks";
  MeshCoordinates at;
  const int in_stage = rank % stage_size(shape_);
  at.pp = rank / stage_size(shape_);
  at.tp = in_stage % shape_.tp;
  at.cp = in_stage / shape_.tp % shape_.cp;
  at.dp = in_stage / (shape_.tp * shape_.cp);
  at.etp = in_stage % shape_.etp;
  at.ep = in_stage / shape_.etp % shape_.ep;
  at.expert_dp = in_stage / (shape_.etp * shape_.ep);
  return at;
}

int Mesh::rank_at(int pp, int dp, int cp, int tp) const {
  return ((pp * shape_.dp + dp) * shape_.cp + cp) * shape_.tp + tp;
}

namespace {
/// Whether two ranks stand in one group: they agree in every coordinate that the kind does not vary.
bool same_group(GroupKind kind, const MeshCoordinates& a, const MeshCoordinates& b) {
  const bool pp = a.pp == b.pp, dp = a.dp == b.dp, cp = a.cp == b.cp, tp = a.tp == b.tp;
  const bool ep = a.ep == b.ep, etp = a.etp == b.etp, expert_dp = a.expert_dp == b.expert_dp;
  switch (kind) {
    case GroupKind::kTp: return pp && dp && cp;
    case GroupKind::kCp: return pp && dp && tp;
    case GroupKind::kDp: return pp && cp && tp;
    case GroupKind::kPp: return dp && cp && tp;
    case GroupKind::kEp: return pp && expert_dp && etp;
    case GroupKind::kEtp: return pp && expert_dp && ep;
    case GroupKind::kGrad:
    case GroupKind::kLoss: return pp && tp;
    case GroupKind::kExpertGrad: return pp && ep && etp;
    case GroupKind::kStage: return pp;
    case GroupKind::kWorld: return true;
  }
  return false;
}
}  // namespace

std::vector<int> Mesh::group(GroupKind kind, int rank) const {
  const MeshCoordinates here = coordinates(rank);
  std::vector<int> ranks;
  for (int other = 0; other < world(); ++other) {
    if (same_group(kind, here, coordinates(other))) ranks.push_back(other);
  }
  return ranks;
}

std::vector<std::vector<int>> Mesh::groups(GroupKind kind) const {
  std::vector<std::vector<int>> all;
  std::vector<bool> placed(world(), false);
  for (int rank = 0; rank < world(); ++rank) {
    if (placed[rank]) continue;
    all.push_back(group(kind, rank));
    for (const int member : all.back()) placed[member] = true;
  }
  return all;
}

std::string_view name(GroupKind kind) {
  switch (kind) {
    case GroupKind::kTp: return "tp";
    case GroupKind::kCp: return "cp";
    case GroupKind::kDp: return "dp";
    case GroupKind::kPp: return "pp";
    case GroupKind::kEp: return "ep";
    case GroupKind::kEtp: return "etp";
    case GroupKind::kGrad: return "grad";
    case GroupKind::kExpertGrad: return "expert_grad";
    case GroupKind::kLoss: return "loss";
    case GroupKind::kStage: return "stage";
    case GroupKind::kWorld: return "world";
  }
  return "";
}

std::string describe(const MeshShape& shape) {
  std::string text;
  const std::pair<std::string_view, int> sizes[] = {
      {"pp", shape.pp}, {"dp", shape.dp}, {"cp", shape.cp}, {"tp", shape.tp}, {"ep", shape.ep}, {"etp", shape.etp}};
  for (const auto& [axis, size] : sizes) {
    if (size > 1) text += concat(text.empty() ? "" : " ", axis, size);
  }
  return text.empty() ? "1 rank" : text;
}

}  // namespace hanok
