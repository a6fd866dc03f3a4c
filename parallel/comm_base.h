// What every back-end shares: argument checks, the short cut of a group of one rank, sequence numbers, log lines, error
// texts. A back-end only moves data: it implements the do_* functions, which are called with checked arguments and size
// > 1.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "base/error.h"
#include "parallel/comm.h"
#include "parallel/progress_board.h"

namespace hanok {

/// One operation on one group. Collectives are numbered per group; send and recv per direction and peer, so that the
/// numbers agree on all ranks that take part.
struct CommCall {
  std::string_view operation;
  int64_t sequence = 0;
  int64_t elements = 0;
  at::ScalarType dtype = at::kByte;
  int peer = -1;  // of a message, inside the group
};

/// kComm: "all_reduce: <what>; group tp[0 1], operation 17, 4096 Float, MPI; <advice>".
Error comm_error(const CommCall& call,
                 std::string_view what,
                 std::string_view group,
                 std::string_view backend,
                 std::string_view advice);

class CheckedComm : public Comm {
 public:
  /// `progress`: where other ranks see what this one has called; null: nowhere.
  CheckedComm(std::string_view kind,
              const std::vector<int>& ranks,
              int rank,
              std::string_view backend,
              std::shared_ptr<const ProgressLine> progress = nullptr);

  int rank() const final { return rank_; }
  int size() const final { return size_; }
  std::string_view name() const final { return name_; }
  void all_reduce(Tensor& x, Reduce op) final;
  void all_gather(Tensor& out, const Tensor& shard) final;
  void reduce_scatter(Tensor& shard, const Tensor& in) final;
  void all_to_all(Tensor& out, const Tensor& in, const Splits& splits) final;
  void broadcast(Tensor& x, int root) final;
  void send(const Tensor& x, int to) final;
  void recv(Tensor& x, int from) final;
  void offer(const Tensor& x, int to) final;
  void take(Tensor& x, int from) final;
  void barrier() final;

 protected:
  virtual void do_all_reduce(const CommCall& call, Tensor& x, Reduce op) = 0;
  virtual void do_all_gather(const CommCall& call, Tensor& out, const Tensor& shard) = 0;
  virtual void do_reduce_scatter(const CommCall& call, Tensor& shard, const Tensor& in) = 0;
  virtual void do_all_to_all(const CommCall& call, Tensor& out, const Tensor& in, const Splits& splits) = 0;
  virtual void do_broadcast(const CommCall& call, Tensor& x, int root) = 0;
  virtual void do_send(const CommCall& call, const Tensor& x, int to) = 0;
  virtual void do_recv(const CommCall& call, Tensor& x, int from) = 0;
  virtual void do_offer(const CommCall& call, const Tensor& x, int to) = 0;
  virtual void do_take(const CommCall& call, Tensor& x, int from) = 0;
  virtual void do_barrier(const CommCall& call) = 0;

  /// Knows for whom a collective waits. May be null.
  const std::shared_ptr<const ProgressLine>& progress() const { return progress_; }

  /// Throws comm_error().
  [[noreturn]] void fail(const CommCall& call, const std::string& what, std::string_view advice) const;

 private:
  CommCall begin(std::string_view operation, const Tensor& x, int64_t& counter, int peer = -1);
  CommCall begin_collective(std::string_view operation, const Tensor& x);
  /// The checks of a message, and its number.
  CommCall begin_message(std::string_view operation,
                         const Tensor& x,
                         int peer,
                         std::map<int, int64_t>& counters,
                         std::string_view instead);
  void require_peer(std::string_view operation, int peer) const;
  void require_usable(std::string_view operation, const Tensor& x) const;
  void require_same_kind(std::string_view operation, const Tensor& a, const Tensor& b) const;

  std::string name_;
  int rank_, size_;
  std::string backend_;
  std::shared_ptr<const ProgressLine> progress_;
  int64_t collectives_ = 0;
  std::map<int, int64_t> sends_, receives_, offers_, takes_;
};

/// "tp[4 5]"
std::string group_name(std::string_view kind, const std::vector<int>& ranks);

/// Element-wise reduction of equally sized parts, in their order; bf16 and f16 sums are accumulated in f32 and rounded
/// once.
Tensor reduce_in_order(at::TensorList parts, Reduce op);

/// A group of this rank alone.
std::shared_ptr<Comm> make_solo_comm(std::string_view kind, int world_rank);

}  // namespace hanok
