#include "parallel/groups.h"

#include "base/error.h"
#include "parallel/comm_base.h"

namespace hanok {

namespace {

struct Member {
  GroupKind kind;
  std::shared_ptr<Comm> Groups::*comm;
};
constexpr Member kMembers[] = {
    {GroupKind::kTp, &Groups::tp},
    {GroupKind::kCp, &Groups::cp},
    {GroupKind::kDp, &Groups::dp},
    {GroupKind::kPp, &Groups::pp},
    {GroupKind::kEp, &Groups::ep},
    {GroupKind::kEtp, &Groups::etp},
    {GroupKind::kGrad, &Groups::grad},
    {GroupKind::kExpertGrad, &Groups::expert_grad},
    {GroupKind::kLoss, &Groups::loss},
    {GroupKind::kStage, &Groups::stage},
    {GroupKind::kWorld, &Groups::world},
};

/// World of one rank, for programs that run alone.
class SoloWorld final : public World {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::shared_ptr<Comm> open(std::string_view kind, const std::vector<int>&) override {
    return make_solo_comm(kind, 0);
  }
  std::shared_ptr<Comm> open_host(std::string_view kind, const std::vector<int>&) override {
    return make_solo_comm(kind, 0);
  }
};

}  // namespace

Groups make_groups(World& world, const Mesh& mesh, bool sequence_parallel) {
  HANOK_REQUIRE(mesh.world() == world.size(), kConfig)
      << "mesh: got " << mesh.world() << " ranks (" << describe(mesh.shape()) << "), expected " << world.size()
      << " as started; keys parallel.*; start mpirun -np " << mesh.world() << ", or change the sizes";
  Groups groups;
  groups.mesh = mesh;
  groups.rank = world.rank();
  groups.at = mesh.coordinates(world.rank());
  groups.sequence_parallel = sequence_parallel;
  for (const auto& [kind, comm] : kMembers) {
    // Every rank opens every group of the kind, in the mesh's order: opening is collective over the world.
    for (const std::vector<int>& ranks : mesh.groups(kind)) {
      if (auto opened = world.open(name(kind), ranks)) groups.*comm = std::move(opened);
    }
  }
  groups.control = world.open_host("control", mesh.group(GroupKind::kWorld, world.rank()));
  return groups;
}

Groups make_single_groups() {
  SoloWorld world;
  return make_groups(world, Mesh(MeshShape{}), false);
}

}  // namespace hanok
