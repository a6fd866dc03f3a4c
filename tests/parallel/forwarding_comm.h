// A group that hands everything on to another one; a test overrides what it wants to see or to break.
#pragma once

#include <memory>
#include <utility>

#include "parallel/comm.h"

namespace hanok {

class ForwardingComm : public Comm {
 public:
  explicit ForwardingComm(std::shared_ptr<Comm> comm) : comm_(std::move(comm)) {}
  int rank() const override { return comm_->rank(); }
  int size() const override { return comm_->size(); }
  std::string_view name() const override { return comm_->name(); }
  void all_reduce(Tensor& x, Reduce op) override { comm_->all_reduce(x, op); }
  void all_gather(Tensor& out, const Tensor& shard) override { comm_->all_gather(out, shard); }
  void reduce_scatter(Tensor& shard, const Tensor& in) override { comm_->reduce_scatter(shard, in); }
  void all_to_all(Tensor& out, const Tensor& in, const Splits& splits) override { comm_->all_to_all(out, in, splits); }
  void broadcast(Tensor& x, int root) override { comm_->broadcast(x, root); }
  void send(const Tensor& x, int to) override { comm_->send(x, to); }
  void recv(Tensor& x, int from) override { comm_->recv(x, from); }
  void offer(const Tensor& x, int to) override { comm_->offer(x, to); }
  void take(Tensor& x, int from) override { comm_->take(x, from); }
  void barrier() override { comm_->barrier(); }

 private:
  std::shared_ptr<Comm> comm_;
};

}  // namespace hanok
