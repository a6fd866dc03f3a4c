// N ranks as N threads of one process: the reference that the other back-ends are compared with.
#include <ATen/Parallel.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "parallel/comm_base.h"
#include "parallel/groups.h"

namespace hanok {

namespace {

using Clock = std::chrono::steady_clock;

/// What a rank lays on the table for the others. A tensor handle keeps its memory alive even if its rank is unwinding.
struct Slot {
  CommCall call;
  Tensor tensor;
  Splits splits;
  int root = 0;
  Reduce op = Reduce::kSum;
};

class Room;

/// State of the whole world: who has left, and why.
struct Crowd {
  Crowd(int size, double stall_timeout_s) : stall_timeout_s(stall_timeout_s), gone(size) {}
  const double stall_timeout_s;
  std::vector<std::atomic<bool>> gone;  // by world rank: its body has returned or thrown
  std::atomic<bool> failed{false};
  std::mutex mutex;  // guards the rest
  std::string failure;
  std::exception_ptr first_error;
  std::map<int64_t, std::shared_ptr<Room>> rooms;

  std::string failure_text() {
    const std::lock_guard lock(mutex);
    return failure;
  }
};

/// The table of one group, shared by the Comm objects of its ranks.
class Room {
 public:
  Room(std::string_view kind, const std::vector<int>& ranks)
      : kind(kind), ranks(ranks), slots(ranks.size()), here_(ranks.size(), false) {}

  const std::string kind;
  const std::vector<int> ranks;
  std::vector<Slot> slots;

  /// Waits for every rank of the group. Returns what went wrong, empty if they all came.
  std::string meet(Crowd& crowd, int rank) {
    std::unique_lock lock(mutex_);
    const int64_t turn = turn_;
    here_[rank] = true;
    if (std::all_of(here_.begin(), here_.end(), [](bool here) { return here; })) {
      std::fill(here_.begin(), here_.end(), false);
      ++turn_;
      changed_.notify_all();
      return "";
    }
    return wait(
        lock, crowd, [&] { return turn_ != turn; }, [&](int other) { return !here_[other]; });
  }

  std::string send(Crowd& crowd, int from, int to, const Slot& slot) {
    std::unique_lock lock(mutex_);
    Mail& mail = mail_[{from, to}];
    mail.slot = slot;
    mail.full = true;
    changed_.notify_all();
    return wait(
        lock, crowd, [&] { return !mail.full; }, [&](int other) { return other == to; });
  }

  /// Waits for the message, lets `read` copy it, and releases the sender.
  std::string receive(Crowd& crowd, int from, int to, const std::function<std::string(const Slot&)>& read) {
    std::unique_lock lock(mutex_);
    Mail& mail = mail_[{from, to}];
    std::string problem = wait(
        lock, crowd, [&] { return mail.full; }, [&](int other) { return other == from; });
    if (problem.empty()) problem = read(mail.slot);
    if (!problem.empty()) return problem;
    mail.full = false;
    mail.slot = Slot{};
    changed_.notify_all();
    return "";
  }

  /// Lays a message down for `to` and goes on.
  void offer(int from, int to, const Slot& slot) {
    const std::lock_guard lock(mutex_);
    offers_[{from, to}].push_back(slot);
    changed_.notify_all();
  }

  std::string take(Crowd& crowd, int from, int to, Slot& slot) {
    std::unique_lock lock(mutex_);
    std::deque<Slot>& offers = offers_[{from, to}];
    const std::string problem = wait(
        lock, crowd, [&] { return !offers.empty(); }, [&](int other) { return other == from; });
    if (!problem.empty()) return problem;
    slot = std::move(offers.front());
    offers.pop_front();
    return "";
  }

  void wake() {
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
  }

 private:
  struct Mail {
    Slot slot;
    bool full = false;
  };

  std::string wait(std::unique_lock<std::mutex>& lock,
                   Crowd& crowd,
                   const std::function<bool()>& done,
                   const std::function<bool(int)>& missing) {
    const auto deadline = Clock::now() + std::chrono::duration<double>(crowd.stall_timeout_s);
    const auto absent = [&](bool only_gone) {
      std::vector<int> absent_ranks;
      for (size_t i = 0; i < ranks.size(); ++i) {
        if (missing(static_cast<int>(i)) && (!only_gone || crowd.gone[ranks[i]])) absent_ranks.push_back(ranks[i]);
      }
      return absent_ranks;
    };
    changed_.wait_until(lock, std::chrono::time_point_cast<Clock::duration>(deadline), [&] {
      return done() || crowd.failed || !absent(true).empty();
    });
    if (done()) return "";
    if (crowd.failed) return concat("got an error on another rank (", crowd.failure_text(), "), expected it to arrive");
    const std::vector<int> gone = absent(true);
    if (!gone.empty()) return concat("got world ranks ", gone, " that have ended, expected them to arrive");
    return concat(
        "got no answer from world ranks ", absent(false), " in ", crowd.stall_timeout_s, " s, expected them to arrive");
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<bool> here_;
  int64_t turn_ = 0;
  std::map<std::pair<int, int>, Mail> mail_;
  std::map<std::pair<int, int>, std::deque<Slot>> offers_;
};

void declare_failed(Crowd& crowd, const std::exception& error) {
  std::vector<std::shared_ptr<Room>> rooms;
  {
    const std::lock_guard lock(crowd.mutex);
    if (!crowd.first_error) {
      crowd.first_error = std::current_exception();
      crowd.failure = error.what();
    }
    crowd.failed = true;
    for (const auto& [number, room] : crowd.rooms) rooms.push_back(room);
  }
  for (const auto& room : rooms) room->wake();
}

void leave(Crowd& crowd, int rank) {
  crowd.gone[rank] = true;
  std::vector<std::shared_ptr<Room>> rooms;
  {
    const std::lock_guard lock(crowd.mutex);
    for (const auto& [number, room] : crowd.rooms) rooms.push_back(room);
  }
  for (const auto& room : rooms) room->wake();
}

class ThreadComm final : public CheckedComm {
 public:
  ThreadComm(std::shared_ptr<Crowd> crowd, std::shared_ptr<Room> room, int rank)
      : CheckedComm(room->kind, room->ranks, rank, "threads"), crowd_(std::move(crowd)), room_(std::move(room)) {}

 private:
  void meet(const CommCall& call) { require_done(call, room_->meet(*crowd_, rank())); }

  void require_done(const CommCall& call, const std::string& problem) const {
    if (!problem.empty()) fail(call, problem, "see the first error of the other ranks");
  }

  /// Puts this rank's part on the table, and checks that all ranks mean the same operation.
  const std::vector<Slot>& lay_out(Slot slot, bool same_size = true) {
    HANOK_REQUIRE(!slot.tensor.defined() || slot.tensor.is_cpu(), kShape)
        << slot.call.operation << ": got a tensor on " << slot.tensor.device().str() << ", expected cpu; group "
        << name() << "; threads are a back-end for the CPU only";
    const CommCall call = slot.call;
    room_->slots[rank()] = std::move(slot);
    meet(call);
    for (int other = 0; other < size(); ++other) {
      const Slot& theirs = room_->slots[other];
      const Slot& mine = room_->slots[rank()];
      const bool same = theirs.call.operation == call.operation && theirs.call.dtype == call.dtype &&
                        (!same_size || theirs.call.elements == call.elements) && theirs.root == mine.root &&
                        theirs.op == mine.op;
      if (!same) {
        fail(call,
             concat("got ",
                    theirs.call.operation,
                    " of ",
                    theirs.call.elements,
                    " ",
                    at::toString(theirs.call.dtype),
                    " on world rank ",
                    room_->ranks[other],
                    ", expected the same operation, root, size and dtype as here"),
             "every rank of a group calls the same operations in the same order");
      }
    }
    return room_->slots;
  }

  /// Nobody returns before all have read; then this rank's handles are dropped.
  void clear_away(const CommCall& call) {
    meet(call);
    room_->slots[rank()] = Slot{};
  }

  std::pair<int64_t, int64_t> own_stretch(int64_t elements) const {
    const int64_t begin = elements * rank() / size();
    return {begin, elements * (rank() + 1) / size() - begin};
  }

  Tensor reduce_stretch(int64_t begin, int64_t count, Reduce op) const {
    std::vector<Tensor> parts;
    for (const Slot& slot : room_->slots) parts.push_back(slot.tensor.view(-1).narrow(0, begin, count));
    return reduce_in_order(parts, op);
  }

  void do_all_reduce(const CommCall& call, Tensor& x, Reduce op) override {
    lay_out({.call = call, .tensor = x, .op = op});
    const auto [begin, count] = own_stretch(x.numel());
    const Tensor part = reduce_stretch(begin, count, op);
    meet(call);  // inputs have been read: they may be overwritten
    for (const Slot& slot : room_->slots) slot.tensor.view(-1).narrow(0, begin, count).copy_(part);
    clear_away(call);
  }

  void do_all_gather(const CommCall& call, Tensor& out, const Tensor& shard) override {
    const auto& slots = lay_out({.call = call, .tensor = shard});
    for (int other = 0; other < size(); ++other) {
      const Tensor block = out.view(-1).narrow(0, other * shard.numel(), shard.numel());
      if (block.data_ptr() != slots[other].tensor.data_ptr()) block.copy_(slots[other].tensor.view(-1));
    }
    clear_away(call);
  }

  void do_reduce_scatter(const CommCall& call, Tensor& shard, const Tensor& in) override {
    lay_out({.call = call, .tensor = in});
    shard.view(-1).copy_(reduce_stretch(rank() * shard.numel(), shard.numel(), Reduce::kSum));
    clear_away(call);
  }

  void do_all_to_all(const CommCall& call, Tensor& out, const Tensor& in, const Splits& splits) override {
    const auto& slots = lay_out({.call = call, .tensor = in, .splits = splits}, false);
    int64_t to = 0;
    for (int other = 0; other < size(); ++other) {
      const std::vector<int64_t>& sent = slots[other].splits.send;
      if (sent[rank()] != splits.receive[other]) {
        fail(call,
             concat("got ",
                    sent[rank()],
                    " rows from world rank ",
                    room_->ranks[other],
                    ", expected ",
                    splits.receive[other]),
             "exchange the counts first");
      }
      int64_t from = 0;
      for (int before = 0; before < rank(); ++before) from += sent[before];
      out.narrow(0, to, sent[rank()]).copy_(slots[other].tensor.narrow(0, from, sent[rank()]));
      to += sent[rank()];
    }
    clear_away(call);
  }

  void do_broadcast(const CommCall& call, Tensor& x, int root) override {
    const auto& slots = lay_out({.call = call, .tensor = x, .root = root});
    if (rank() != root) x.view(-1).copy_(slots[root].tensor.view(-1));
    clear_away(call);
  }

  void do_send(const CommCall& call, const Tensor& x, int to) override {
    require_done(call, room_->send(*crowd_, rank(), to, {.call = call, .tensor = x}));
  }

  void do_recv(const CommCall& call, Tensor& x, int from) override {
    const auto read_it = [&](const Slot& slot) { return read(call, slot, x, from); };
    require_done(call, room_->receive(*crowd_, from, rank(), read_it));
  }

  void do_offer(const CommCall& call, const Tensor& x, int to) override {
    room_->offer(rank(), to, {.call = call, .tensor = x});
  }

  void do_take(const CommCall& call, Tensor& x, int from) override {
    Slot slot;
    std::string problem = room_->take(*crowd_, from, rank(), slot);
    if (problem.empty()) problem = read(call, slot, x, from);
    require_done(call, problem);
  }

  std::string read(const CommCall& call, const Slot& slot, Tensor& x, int from) const {
    if (slot.call.elements != call.elements || slot.call.dtype != call.dtype) {
      return concat("got ",
                    slot.call.elements,
                    " ",
                    at::toString(slot.call.dtype),
                    " from world rank ",
                    room_->ranks[from],
                    ", expected the size and dtype of the receiving tensor");
    }
    x.view(-1).copy_(slot.tensor.view(-1));
    return "";
  }

  void do_barrier(const CommCall& call) override {
    lay_out({.call = call});
    clear_away(call);
  }

  std::shared_ptr<Crowd> crowd_;
  std::shared_ptr<Room> room_;
};

class ThreadWorld final : public World {
 public:
  ThreadWorld(std::shared_ptr<Crowd> crowd, int rank) : crowd_(std::move(crowd)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(crowd_->gone.size()); }

  std::shared_ptr<Comm> open(std::string_view kind, const std::vector<int>& ranks) override {
    std::shared_ptr<Room> room;
    {
      const std::lock_guard lock(crowd_->mutex);
      std::shared_ptr<Room>& numbered = crowd_->rooms[opened_++];
      if (!numbered) numbered = std::make_shared<Room>(kind, ranks);
      room = numbered;
    }
    HANOK_REQUIRE(room->kind == kind && room->ranks == ranks, kComm)
        << "open: got group " << group_name(kind, ranks) << " on world rank " << rank_ << ", expected "
        << group_name(room->kind, room->ranks) << " as on another rank; " << opened_ << ". group of the world; "
        << "every rank opens all groups in the same order";
    const auto here = std::find(ranks.begin(), ranks.end(), rank_);
    if (here == ranks.end()) return nullptr;
    if (ranks.size() == 1) return make_solo_comm(kind, rank_);
    return std::make_shared<ThreadComm>(crowd_, room, static_cast<int>(here - ranks.begin()));
  }

  std::shared_ptr<Comm> open_host(std::string_view kind, const std::vector<int>& ranks) override {
    return open(kind, ranks);
  }

 private:
  std::shared_ptr<Crowd> crowd_;
  int rank_;
  int64_t opened_ = 0;
};

}  // namespace

void run_on_threads(int size, const std::function<void(World&)>& body, double stall_timeout_s) {
  HANOK_REQUIRE(size >= 1, kConfig) << "threads: got " << size << " ranks, expected at least 1; run_on_threads; "
                                    << "ask for one thread or more";
  // A new thread takes the process-wide number of intra-op threads at its first parallel operation.
  const int intra_op_threads = at::get_num_threads();
  at::set_num_threads(std::max(1, intra_op_threads / size));
  const auto crowd = std::make_shared<Crowd>(size, stall_timeout_s);
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&crowd, &body, rank] {
        try {
          ThreadWorld world(crowd, rank);
          body(world);
        } catch (const std::exception& error) {
          declare_failed(*crowd, error);
        }
        leave(*crowd, rank);
      });
    }
  }
  at::set_num_threads(intra_op_threads);
  if (crowd->first_error) std::rethrow_exception(crowd->first_error);
}

}  // namespace hanok
