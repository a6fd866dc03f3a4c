#include "base/error.h"
#include "parallel/groups.h"

namespace hanok {
namespace {

/// Knows its place and size; there is nobody behind it.
class PlannedComm : public Comm {
 public:
  PlannedComm(const Mesh& mesh, GroupKind kind, int rank) : ranks_(mesh.group(kind, rank)) {
    rank_ = static_cast<int>(std::find(ranks_.begin(), ranks_.end(), rank) - ranks_.begin());
    name_ = concat(hanok::name(kind), ranks_);
  }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(ranks_.size()); }
  std::string_view name() const override { return name_; }
  void all_reduce(Tensor&, Reduce) override { refuse(); }
  void all_gather(Tensor&, const Tensor&) override { refuse(); }
  void reduce_scatter(Tensor&, const Tensor&) override { refuse(); }
  void all_to_all(Tensor&, const Tensor&, const Splits&) override { refuse(); }
  void broadcast(Tensor&, int) override { refuse(); }
  void send(const Tensor&, int) override { refuse(); }
  void recv(Tensor&, int) override { refuse(); }
  void offer(const Tensor&, int) override { refuse(); }
  void take(Tensor&, int) override { refuse(); }
  void barrier() override { refuse(); }

 private:
  void refuse() const {
    HANOK_FAIL(kComm) << name_ << ": got an operation, expected none on a layout that is only planned";
  }
  std::vector<int> ranks_;
  int rank_ = 0;
  std::string name_;
};

}  // namespace

Groups make_planned_groups(const Mesh& mesh, int rank, bool sequence_parallel) {
  const auto group = [&](GroupKind kind) { return std::make_shared<PlannedComm>(mesh, kind, rank); };
  Groups out;
  out.mesh = mesh;
  out.rank = rank;
  out.at = mesh.coordinates(rank);
  out.sequence_parallel = sequence_parallel;
  out.tp = group(GroupKind::kTp);
  out.cp = group(GroupKind::kCp);
  out.dp = group(GroupKind::kDp);
  out.pp = group(GroupKind::kPp);
  out.ep = group(GroupKind::kEp);
  out.etp = group(GroupKind::kEtp);
  out.grad = group(GroupKind::kGrad);
  out.expert_grad = group(GroupKind::kExpertGrad);
  out.loss = group(GroupKind::kLoss);
  out.stage = group(GroupKind::kStage);
  out.world = out.control = group(GroupKind::kWorld);
  return out;
}

}  // namespace hanok
