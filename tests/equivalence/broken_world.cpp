#include "tests/equivalence/broken_world.h"

namespace hanok {
namespace {

class BrokenComm : public Comm {
 public:
  BrokenComm(std::shared_ptr<Comm> comm, int number, bool exchanges)
      : comm_(std::move(comm)), left_(exchanges ? 0 : number), exchanges_left_(exchanges ? number : 0) {}
  int rank() const override { return comm_->rank(); }
  int size() const override { return comm_->size(); }
  std::string_view name() const override { return comm_->name(); }
  void all_reduce(Tensor& x, Reduce op) override {
    if (--left_ != 0) comm_->all_reduce(x, op);
  }
  void all_gather(Tensor& out, const Tensor& shard) override { comm_->all_gather(out, shard); }
  void reduce_scatter(Tensor& shard, const Tensor& in) override {
    if (--left_ != 0) return comm_->reduce_scatter(shard, in);
    shard.copy_(in.view({size(), -1})[rank()].view(shard.sizes()));
  }
  void all_to_all(Tensor& out, const Tensor& in, const Splits& splits) override {
    if (--exchanges_left_ != 0) return comm_->all_to_all(out, in, splits);
    out.zero_();
  }
  void broadcast(Tensor& x, int root) override { comm_->broadcast(x, root); }
  void send(const Tensor& x, int to) override { comm_->send(x, to); }
  void recv(Tensor& x, int from) override { comm_->recv(x, from); }
  void offer(const Tensor& x, int to) override { comm_->offer(x, to); }
  void take(Tensor& x, int from) override { comm_->take(x, from); }
  void barrier() override { comm_->barrier(); }

 private:
  std::shared_ptr<Comm> comm_;
  int left_, exchanges_left_;
};

}  // namespace

std::shared_ptr<Comm> BrokenWorld::open(std::string_view kind, const std::vector<int>& ranks) {
  std::shared_ptr<Comm> comm = world_.open(kind, ranks);
  return comm && kind == kind_ ? std::make_shared<BrokenComm>(std::move(comm), number_, fault_ == Fault::kExchange)
                               : comm;
}

}  // namespace hanok
