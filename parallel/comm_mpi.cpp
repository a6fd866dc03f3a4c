// MPI on host tensors. MPI moves bytes only: every sum is made here in rank order, so that results are bitwise
// repeatable and equal to the thread back-end, whatever algorithm the MPI library would choose. All waits are on
// non-blocking operations, so that a stalled peer is reported.
#include <mpi.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "base/log.h"
#include "parallel/comm_base.h"
#include "parallel/comm_nccl.h"
#include "parallel/groups.h"

namespace hanok {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMaxMessageBytes = int64_t{1} << 30;   // MPI counts are int
constexpr int64_t kMaxStagingBytes = int64_t{64} << 20;  // temporary memory of one reduction
constexpr int64_t kSmallBytes = int64_t{16} << 10;  // per rank: latency counts, MPI's logarithmic algorithms are used

std::string mpi_text(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  return std::string(text, length);
}

void require_mpi(int code, std::string_view operation) {
  HANOK_REQUIRE(code == MPI_SUCCESS, kComm)
      << operation << ": got " << mpi_text(code)
      << ", expected success; start of MPI; check the MPI installation and the hosts";
}

struct Bytes {
  char* data = nullptr;
  int64_t size = 0;
};

Bytes bytes_of(const Tensor& x) {
  return {static_cast<char*>(x.data_ptr()), static_cast<int64_t>(x.nbytes())};
}

Bytes part_of(const Tensor& x, int64_t begin, int64_t count) {
  const int64_t item = static_cast<int64_t>(x.element_size());
  return {static_cast<char*>(x.data_ptr()) + begin * item, count * item};
}

/// Tensors that MPI may still read or write after an operation was given up. Never freed: the program is about to end.
void keep_forever(std::vector<Tensor> tensors) {
  static auto* const kept = new std::vector<std::vector<Tensor>>;
  kept->push_back(std::move(tensors));
}

/// Non-blocking operations under way, with the peer of each (-1: the library's own collective), and the tensors behind
/// them.
class Flight {
 public:
  explicit Flight(std::vector<Tensor> keep) : keep_(std::move(keep)) {}
  Flight(const Flight&) = delete;
  Flight& operator=(const Flight&) = delete;
  ~Flight() {
    if (!landed_) keep_forever(std::move(keep_));
  }

  /// The place of one more request; `receives`: bytes that must arrive, -1 if the request does not receive.
  MPI_Request* add(int peer, int receives = -1) {
    landed_ = false;
    peers_.push_back(peer);
    receives_.push_back(receives);
    statuses_.emplace_back();
    return &requests_.emplace_back(MPI_REQUEST_NULL);
  }

  /// One look at all; true when nothing is under way. Sets `problem` on failure.
  bool landed(std::string& problem) {
    int done = 0;
    const int count = static_cast<int>(requests_.size());
    const int code = MPI_Testall(count, requests_.data(), &done, statuses_.data());
    for (int i = 0; i < count && code == MPI_ERR_IN_STATUS; ++i) {
      const int own = statuses_[i].MPI_ERROR;
      if (own != MPI_SUCCESS && own != MPI_ERR_PENDING) problem = concat("got ", mpi_text(own), ", expected success");
    }
    if (code != MPI_SUCCESS && problem.empty()) problem = concat("got ", mpi_text(code), ", expected success");
    if (!done || !problem.empty()) return false;
    landed_ = true;
    for (int i = 0; i < count; ++i) {
      int bytes = receives_[i];
      if (bytes >= 0) MPI_Get_count(&statuses_[i], MPI_BYTE, &bytes);
      if (bytes != receives_[i]) problem = concat("got ", bytes, " bytes, expected ", receives_[i]);
    }
    return true;
  }

  /// Peers that have not answered.
  std::vector<int> missing() const {
    std::vector<int> peers;
    for (size_t i = 0; i < requests_.size(); ++i) {
      int done = 0;
      if (MPI_Request_get_status(requests_[i], &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done) continue;
      if (std::find(peers.begin(), peers.end(), peers_[i]) == peers.end()) peers.push_back(peers_[i]);
    }
    return peers;
  }

 private:
  std::vector<Tensor> keep_;
  std::vector<MPI_Request> requests_;
  std::vector<MPI_Status> statuses_;
  std::vector<int> peers_, receives_;
  bool landed_ = true;
};

class MpiComm final : public CheckedComm {
 public:
  MpiComm(std::string_view kind,
          const std::vector<int>& ranks,
          int rank,
          std::shared_ptr<const ProgressLine> progress,
          MPI_Comm comm,
          double stall_timeout_s)
      : CheckedComm(kind, ranks, rank, "MPI", std::move(progress)),
        ranks_(ranks),
        comm_(comm),
        stall_timeout_s_(stall_timeout_s) {}

  ~MpiComm() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized || broken_) return;
    std::string ignored;
    std::erase_if(offers_, [&](const std::unique_ptr<Flight>& flight) { return flight->landed(ignored); });
    MPI_Comm_free(&comm_);
  }

 private:
  void do_all_reduce(const CommCall& call, Tensor& x, Reduce op) override {
    require_host(call, x);
    Tensor flat = x.view(-1);
    if (static_cast<int64_t>(x.nbytes()) <= kSmallBytes) {
      const Tensor all = at::empty({size(), x.numel()}, x.options());
      gather_small(call, all, flat);
      flat.copy_(reduce_in_order(all.unbind(0), op));
      return;
    }
    const int64_t slice = std::max<int64_t>(size(), kMaxStagingBytes / static_cast<int64_t>(x.element_size()));
    for (int64_t begin = 0; begin < x.numel(); begin += slice) {
      Tensor piece = flat.narrow(0, begin, std::min(slice, x.numel() - begin));
      all_reduce_slice(call, piece, op);
    }
  }

  /// Every rank reduces its stretch of the slice, then all stretches travel to all ranks.
  void all_reduce_slice(const CommCall& call, Tensor& x, Reduce op) {
    const auto begin_of = [&](int other) { return x.numel() * other / size(); };
    const auto stretch = [&](int other) { return part_of(x, begin_of(other), begin_of(other + 1) - begin_of(other)); };
    const int64_t own_begin = begin_of(rank()), own_count = begin_of(rank() + 1) - own_begin;
    const Tensor received = at::empty({size(), own_count}, x.options());
    std::vector<Bytes> out(size()), in(size());
    for (int other = 0; other < size(); ++other) {
      out[other] = stretch(other);
      in[other] = bytes_of(received[other]);
    }
    exchange(call, out, in, {x, received});
    const Tensor sum = reduce_in_order(received.unbind(0), op);
    for (int other = 0; other < size(); ++other) {
      out[other] = bytes_of(sum);
      in[other] = stretch(other);
    }
    exchange(call, out, in, {x, sum});
  }

  void do_all_gather(const CommCall& call, Tensor& out, const Tensor& shard) override {
    require_host(call, out);
    if (static_cast<int64_t>(shard.nbytes()) <= kSmallBytes) {
      gather_small(call, out, shard);
      return;
    }
    std::vector<Bytes> send(size(), bytes_of(shard)), receive(size());
    for (int other = 0; other < size(); ++other) receive[other] = part_of(out, other * shard.numel(), shard.numel());
    exchange(call, send, receive, {out, shard});
  }

  void do_reduce_scatter(const CommCall& call, Tensor& shard, const Tensor& in) override {
    require_host(call, in);
    const int64_t item = static_cast<int64_t>(in.element_size());
    const int64_t slice = std::max<int64_t>(1, kMaxStagingBytes / item / size());
    for (int64_t begin = 0; begin < shard.numel(); begin += slice) {
      const int64_t count = std::min(slice, shard.numel() - begin);
      const Tensor received = at::empty({size(), count}, in.options());
      std::vector<Bytes> send(size()), receive(size());
      for (int other = 0; other < size(); ++other) {
        send[other] = part_of(in, other * shard.numel() + begin, count);
        receive[other] = bytes_of(received[other]);
      }
      exchange(call, send, receive, {in, received});
      shard.view(-1).narrow(0, begin, count).copy_(reduce_in_order(received.unbind(0), Reduce::kSum));
    }
  }

  void do_all_to_all(const CommCall& call, Tensor& out, const Tensor& in, const Splits& splits) override {
    require_host(call, in);
    int64_t row = 1;
    for (const int64_t extent : in.sizes().slice(1)) row *= extent;
    std::vector<Bytes> send(size()), receive(size());
    int64_t sent = 0, received = 0;
    for (int other = 0; other < size(); ++other) {
      send[other] = part_of(in, sent, splits.send[other] * row);
      receive[other] = part_of(out, received, splits.receive[other] * row);
      sent += splits.send[other] * row;
      received += splits.receive[other] * row;
    }
    exchange(call, send, receive, {out, in});
  }

  void do_broadcast(const CommCall& call, Tensor& x, int root) override {
    require_host(call, x);
    const Bytes all = bytes_of(x);
    for (int64_t begin = 0; begin < all.size; begin += kMaxMessageBytes) {
      Flight flight({x});
      const int count = static_cast<int>(std::min(kMaxMessageBytes, all.size - begin));
      check(call, MPI_Ibcast(all.data + begin, count, MPI_BYTE, root, comm_, flight.add(-1)));
      wait(call, flight);
    }
  }

  void do_send(const CommCall& call, const Tensor& x, int to) override {
    require_host(call, x);
    Flight flight({x});
    post(call, flight, bytes_of(x), to, true);
    wait(call, flight);
  }

  void do_recv(const CommCall& call, Tensor& x, int from) override {
    require_host(call, x);
    Flight flight({x});
    post(call, flight, bytes_of(x), from, false);
    wait(call, flight);
  }

  void do_offer(const CommCall& call, const Tensor& x, int to) override {
    require_host(call, x);
    drop_taken(call);
    Flight& flight = *offers_.emplace_back(std::make_unique<Flight>(std::vector<Tensor>{x}));
    post(call, flight, bytes_of(x), to, true, kOfferTags);
  }

  void do_take(const CommCall& call, Tensor& x, int from) override {
    require_host(call, x);
    Flight flight({x});
    post(call, flight, bytes_of(x), from, false, kOfferTags);
    wait(call, flight);
    drop_taken(call);
  }

  /// Lets go of the tensors whose messages have left.
  void drop_taken(const CommCall& call) {
    std::string problem;
    std::erase_if(offers_, [&](const std::unique_ptr<Flight>& flight) { return flight->landed(problem); });
    if (problem.empty()) return;
    broken_ = true;
    fail(call, problem, "see the first error of the other ranks");
  }

  void do_barrier(const CommCall& call) override {
    require_whole(call);
    Flight flight({});
    check(call, MPI_Ibarrier(comm_, flight.add(-1)));
    wait(call, flight);
  }

  void gather_small(const CommCall& call, const Tensor& out, const Tensor& shard) {
    Flight flight({out, shard});
    // In place when the shard is already this rank's block: MPI forbids the two buffers to overlap otherwise.
    const bool in_place = part_of(out, rank() * shard.numel(), 0).data == shard.data_ptr();
    const int count = static_cast<int>(shard.nbytes());
    check(call,
          MPI_Iallgather(in_place ? MPI_IN_PLACE : shard.data_ptr(),
                         count,
                         MPI_BYTE,
                         out.data_ptr(),
                         count,
                         MPI_BYTE,
                         comm_,
                         flight.add(-1)));
    wait(call, flight);
  }

  /// send[r] goes to rank r, receive[r] comes from it. `keep`: the tensors behind the bytes.
  void exchange(const CommCall& call,
                const std::vector<Bytes>& send,
                const std::vector<Bytes>& receive,
                std::vector<Tensor> keep) {
    Flight flight(std::move(keep));
    for (int step = 1; step < size(); ++step) {
      const int from = (rank() - step + size()) % size();
      post(call, flight, receive[from], from, false);
    }
    for (int step = 1; step < size(); ++step) {
      const int to = (rank() + step) % size();
      post(call, flight, send[to], to, true);
    }
    // An in-place gather has one buffer for both.
    if (send[rank()].size > 0 && send[rank()].data != receive[rank()].data) {
      std::memcpy(receive[rank()].data, send[rank()].data, send[rank()].size);
    }
    wait(call, flight);
  }

  /// Messages of one pair travel in order, so that a long one may be sent in pieces under one tag.
  void post(const CommCall& call, Flight& flight, const Bytes& bytes, int peer, bool is_send, int first_tag = 0) {
    const int tag = first_tag + static_cast<int>(call.sequence % kTags);
    for (int64_t begin = 0; begin < bytes.size; begin += kMaxMessageBytes) {
      const int count = static_cast<int>(std::min(kMaxMessageBytes, bytes.size - begin));
      char* const data = bytes.data + begin;
      MPI_Request* const request = flight.add(peer, is_send ? -1 : count);
      check(call,
            is_send ? MPI_Isend(data, count, MPI_BYTE, peer, tag, comm_, request)
                    : MPI_Irecv(data, count, MPI_BYTE, peer, tag, comm_, request));
    }
  }

  void wait(const CommCall& call, Flight& flight) {
    constexpr int kEagerLooks = 200;
    const auto start = Clock::now();
    std::string problem;
    for (int64_t looks = 0; !flight.landed(problem) && problem.empty(); ++looks) {
      if (looks < kEagerLooks) continue;
      const std::chrono::duration<double> waited = Clock::now() - start;
      if (waited.count() > stall_timeout_s_) {
        broken_ = true;
        fail(call,
             concat("got no answer from world ranks ",
                    world_ranks(call, flight.missing()),
                    " in ",
                    stall_timeout_s_,
                    " s, expected them to arrive"),
             "look for the operation in which those ranks are, or raise the stall timeout");
      }
      // With more ranks than cores the peer needs this core; in a long wait (another rank reads or evaluates) it is
      // left alone.
      if (waited.count() < 0.01) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    }
    if (problem.empty()) return;
    broken_ = true;
    fail(call, problem, "see the first error of the other ranks");
  }

  std::vector<int> world_ranks(const CommCall& call, const std::vector<int>& peers) const {
    std::vector<int> ranks;
    for (const int peer : peers) {
      if (peer < 0) return progress()->awaited(call.sequence);  // a collective of the library does not say who is late
      ranks.push_back(ranks_[peer]);
    }
    return ranks;
  }

  void check(const CommCall& call, int code) {
    if (code == MPI_SUCCESS) return;
    broken_ = true;
    fail(call, concat("got ", mpi_text(code), ", expected success"), "see the first error of the other ranks");
  }

  void require_whole(const CommCall& call) {
    if (broken_) fail(call, "got a group that failed before, expected a working one", "restart the job");
  }

  void require_host(const CommCall& call, const Tensor& x) {
    require_whole(call);
    HANOK_REQUIRE(x.is_cpu(), kShape) << call.operation << ": got a tensor on " << x.device().str()
                                      << ", expected cpu; group " << name() << "; use the NCCL back-end for GPUs";
  }

  // MPI promises tags up to 32767: one half for operations that meet, the other for offers.
  static constexpr int kTags = 1 << 14, kOfferTags = kTags;
  std::vector<std::unique_ptr<Flight>> offers_;
  std::vector<int> ranks_;
  MPI_Comm comm_;
  double stall_timeout_s_;
  bool broken_ = false;
};

void abort_all_ranks(const Error& error) {
  HANOK_LOG(ERROR) << error.what();
  MPI_Abort(MPI_COMM_WORLD, exit_code(error.kind()));
}

class MpiWorld final : public World {
 public:
  MpiWorld(Backend backend, double stall_timeout_s, std::function<void(const Error&)> end_process, bool peer_links)
      : backend_(backend), stall_timeout_s_(stall_timeout_s), peer_links_(peer_links) {
    if (backend == Backend::kNccl) watchdog_ = start_nccl_watchdog(stall_timeout_s, std::move(end_process));
    // A world of our own: its messages and its error handling do not touch anybody else's.
    require_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &world_), "MPI_Comm_dup");
    require_mpi(MPI_Comm_set_errhandler(world_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    require_mpi(MPI_Comm_rank(world_, &rank_), "MPI_Comm_rank");
    require_mpi(MPI_Comm_size(world_, &size_), "MPI_Comm_size");
    board_ = make_board();
  }

  ~MpiWorld() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (!finalized) MPI_Comm_free(&world_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::shared_ptr<Comm> open(std::string_view kind, const std::vector<int>& ranks) override {
    std::shared_ptr<Comm> host = open_host(kind, ranks);
    if (backend_ == Backend::kMpi) return host;
    const auto progress = next_line(ranks);
    if (!host || host->size() == 1) return host;
    return open_nccl(kind, ranks, host, watchdog_, progress, peer_links_);
  }

  std::shared_ptr<Comm> open_host(std::string_view kind, const std::vector<int>& ranks) override {
    const auto here = std::find(ranks.begin(), ranks.end(), rank_);
    const auto progress = next_line(ranks);
    if (here == ranks.end()) return nullptr;
    if (ranks.size() == 1) return make_solo_comm(kind, rank_);
    MPI_Group all, members;
    MPI_Comm comm;
    require_mpi(MPI_Comm_group(world_, &all), "MPI_Comm_group");
    require_mpi(MPI_Group_incl(all, static_cast<int>(ranks.size()), ranks.data(), &members), "MPI_Group_incl");
    require_mpi(MPI_Comm_create_group(world_, members, 0, &comm), "MPI_Comm_create_group");
    require_mpi(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    MPI_Group_free(&members);
    MPI_Group_free(&all);
    return std::make_shared<MpiComm>(
        kind, ranks, static_cast<int>(here - ranks.begin()), progress, comm, stall_timeout_s_);
  }

 private:
  /// All ranks open the same communicators in the same order, also those that they are not in: so lines agree.
  std::shared_ptr<const ProgressLine> next_line(const std::vector<int>& ranks) {
    return std::make_shared<ProgressLine>(board_, num_lines_++, ranks, rank_);
  }

  std::shared_ptr<const ProgressBoard> make_board() const {
    MPI_Comm node;
    require_mpi(MPI_Comm_split_type(world_, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node), "MPI_Comm_split_type");
    int index = 0, count = 1;
    require_mpi(MPI_Comm_rank(node, &index), "MPI_Comm_rank");
    require_mpi(MPI_Comm_size(node, &count), "MPI_Comm_size");
    std::vector<int> ranks(count);
    require_mpi(MPI_Allgather(&rank_, 1, MPI_INT, ranks.data(), 1, MPI_INT, node), "MPI_Allgather");
    static int num_boards = 0;
    int64_t id[] = {::getpid(), num_boards++};
    require_mpi(MPI_Bcast(id, sizeof id, MPI_BYTE, 0, node), "MPI_Bcast");
    const std::string path = concat("/dev/shm/hanok-", id[0], "-", id[1]);
    std::shared_ptr<const ProgressBoard> board;
    if (index == 0) board = std::make_shared<ProgressBoard>(path, ranks, index);
    // A file of that name that was here before is somebody else's.
    int is_made = index == 0 && board->cell(rank_, 0) != nullptr ? 1 : 0;
    require_mpi(MPI_Bcast(&is_made, 1, MPI_INT, 0, node), "MPI_Bcast");
    if (index != 0) board = std::make_shared<ProgressBoard>(is_made ? path : "", ranks, index);
    require_mpi(MPI_Barrier(node), "MPI_Barrier");
    if (index == 0 && is_made) ::unlink(path.c_str());  // the memory lives as long as it is mapped
    MPI_Comm_free(&node);
    return board;
  }

  Backend backend_;
  double stall_timeout_s_;
  bool peer_links_;
  std::shared_ptr<NcclWatchdog> watchdog_;
  MPI_Comm world_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1, num_lines_ = 0;
  std::shared_ptr<const ProgressBoard> board_;
};

}  // namespace

std::unique_ptr<World> make_mpi_world(Backend backend,
                                      double stall_timeout_s,
                                      std::function<void(const Error&)> end_process,
                                      bool peer_links) {
  HANOK_REQUIRE(backend != Backend::kThread, kConfig) << "MPI world: got the thread back-end, expected MPI or NCCL; "
                                                         "make_mpi_world; threads are started by run_on_threads";
  if (backend == Backend::kNccl) require_nccl();
  int initialized = 0, level = MPI_THREAD_SINGLE;
  MPI_Initialized(&initialized);
  HANOK_REQUIRE(initialized, kComm) << "MPI: got no MPI_Init, expected it before the world is made; make_mpi_world; "
                                    << "call MPI_Init_thread in main";
  MPI_Query_thread(&level);
  // Backward calls collectives from autograd's thread on GPUs, never at the same time as the main thread.
  HANOK_REQUIRE(level >= MPI_THREAD_SERIALIZED, kComm)
      << "MPI: got thread level " << level << ", expected MPI_THREAD_SERIALIZED (" << int{MPI_THREAD_SERIALIZED}
      << ") or more; make_mpi_world; ask MPI_Init_thread for it, or use an MPI library built with threads";
  return std::make_unique<MpiWorld>(
      backend, stall_timeout_s, end_process ? std::move(end_process) : abort_all_ranks, peer_links);
}

}  // namespace hanok
