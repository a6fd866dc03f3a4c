#include "tests/equivalence/broken_world.h"

#include "tests/parallel/forwarding_comm.h"

namespace hanok {
namespace {

class BrokenComm : public ForwardingComm {
 public:
  BrokenComm(std::shared_ptr<Comm> comm, int number, bool exchanges)
      : ForwardingComm(std::move(comm)), left_(exchanges ? 0 : number), exchanges_left_(exchanges ? number : 0) {}
  void all_reduce(Tensor& x, Reduce op) override {
    if (--left_ != 0) ForwardingComm::all_reduce(x, op);
  }
  void reduce_scatter(Tensor& shard, const Tensor& in) override {
    if (--left_ != 0) return ForwardingComm::reduce_scatter(shard, in);
    shard.copy_(in.view({size(), -1})[rank()].view(shard.sizes()));
  }
  void all_to_all(Tensor& out, const Tensor& in, const Splits& splits) override {
    if (--exchanges_left_ != 0) return ForwardingComm::all_to_all(out, in, splits);
    out.zero_();
  }

 private:
  int left_, exchanges_left_;
};

}  // namespace

std::shared_ptr<Comm> BrokenWorld::open(std::string_view kind, const std::vector<int>& ranks) {
  std::shared_ptr<Comm> comm = world_.open(kind, ranks);
  return comm && kind == kind_ ? std::make_shared<BrokenComm>(std::move(comm), number_, fault_ == Fault::kExchange)
                               : comm;
}

}  // namespace hanok
