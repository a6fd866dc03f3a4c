// NCCL on the current CUDA stream. The id of a communicator travels over MPI. Nothing waits on the host but barrier()
// and the first use of a communicator; what hangs is found by the watchdog.
#include "parallel/comm_nccl.h"

#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <nccl.h>

#include <chrono>
#include <thread>

#include "base/log.h"
#include "parallel/comm_base.h"
#include "parallel/nccl_watchdog.h"
#include "parallel/peer_link.h"

namespace hanok {

namespace {

/// NCCL's type for sums, maxima and minima. Booleans travel as bytes 0 and 1.
std::optional<ncclDataType_t> arithmetic_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return ncclFloat32;
    case at::kDouble: return ncclFloat64;
    case at::kHalf: return ncclFloat16;
    case at::kBFloat16: return ncclBfloat16;
    case at::kInt: return ncclInt32;
    case at::kLong: return ncclInt64;
    case at::kChar: return ncclInt8;
    case at::kByte:
    case at::kBool: return ncclUint8;
    default: return std::nullopt;
  }
}

ncclRedOp_t nccl_op(Reduce op, at::ScalarType dtype) {
  switch (op) {
    case Reduce::kSum:
      return dtype == at::kBool ? ncclMax : ncclSum;  // a sum of booleans is "any", as in the other back-ends
    case Reduce::kMax: return ncclMax;
    case Reduce::kMin: return ncclMin;
  }
  return ncclSum;
}

/// Sends of a pipeline wait on the GPU until they are taken: on few multiprocessors, for the others compute.
constexpr int kChannelBlocks = 4;

/// One communicator of NCCL and what is under way on it.
class Communicator {
 public:
  Communicator(std::shared_ptr<NcclLane> lane, std::function<void(const CommCall&, const std::string&)> fail)
      : lane_(std::move(lane)), fail_(std::move(fail)) {}
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  ~Communicator() {
    if (comm_ == nullptr) return;
    lane_->attach(nullptr);
    // Destroying waits for the peers, who may be gone when an error unwinds this rank; aborting is local.
    const NcclLane::Operation operation(*lane_, {"end of the communicator"}, std::nullopt);
    std::uncaught_exceptions() > 0 ? ncclCommAbort(comm_) : ncclCommDestroy(comm_);
  }

  /// Waits for the other ranks. `blocks`: multiprocessors that an operation takes at most, 0: as NCCL chooses.
  void open(const CommCall& call, const ncclUniqueId& id, int size, int rank, int blocks = 0) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    if (blocks > 0) config.maxCTAs = blocks;
    {
      const NcclLane::Operation operation(*lane_, call, std::nullopt);
      check(call, ncclCommInitRankConfig(&comm_, size, id, rank, &config));
    }
    lane_->attach(comm_);
  }

  /// `launch` enqueues the operation. A peer that is gone or a network that failed shows here, some operations later.
  template <class Launch>
  void run(const CommCall& call, cudaStream_t stream, const Launch& launch) {
    if (is_broken_) fail_(call, "got a group that failed before, expected a working one");
    ncclResult_t state = ncclSuccess;
    check(call, ncclCommGetAsyncError(comm_, &state));
    check(call, state);
    NcclLane::Operation operation(*lane_, call, stream);
    check(call, launch(comm_));
    operation.launched();
  }

 private:
  void check(const CommCall& call, ncclResult_t result) {
    if (result == ncclSuccess || result == ncclInProgress) return;
    const std::string detail = comm_ == nullptr ? "" : ncclGetLastError(comm_);
    is_broken_ = true;
    lane_->attach(nullptr);
    if (comm_ != nullptr) ncclCommAbort(comm_);
    comm_ = nullptr;
    fail_(call, concat("got ", ncclGetErrorString(result), detail.empty() ? "" : ": ", detail, ", expected success"));
  }

  std::shared_ptr<NcclLane> lane_;
  std::function<void(const CommCall&, const std::string&)> fail_;
  ncclComm_t comm_ = nullptr;
  bool is_broken_ = false;
};

/// What two neighbours of a pipeline offer each other. What is offered waits on a stream of its own, and each direction
/// has its own order, so that neither side waits for anything but the message it takes.
class Channel {
 public:
  virtual ~Channel() = default;
  virtual void send(const CommCall& call, const Tensor& x, cudaStream_t side) = 0;
  virtual void receive(const CommCall& call, Tensor& x, cudaStream_t stream) = 0;
  virtual PeerLink* link() { return nullptr; }
};

/// By copy engines.
class LinkChannel final : public Channel {
 public:
  using Fail = std::function<void(const CommCall&, const std::string&)>;
  LinkChannel(std::unique_ptr<PeerLink> link, std::shared_ptr<NcclLane> out, std::shared_ptr<NcclLane> in, Fail fail)
      : link_(std::move(link)), out_(std::move(out)), in_(std::move(in)), fail_(std::move(fail)) {}

  void send(const CommCall& call, const Tensor& x, cudaStream_t side) override {
    run(*out_, call, side, [&] { return link_->send(x.const_data_ptr(), x.nbytes(), side); });
  }
  void receive(const CommCall& call, Tensor& x, cudaStream_t stream) override {
    run(*in_, call, stream, [&] { return link_->receive(x.mutable_data_ptr(), x.nbytes(), stream); });
  }
  PeerLink* link() override { return link_.get(); }

 private:
  template <class Launch>
  void run(NcclLane& lane, const CommCall& call, cudaStream_t stream, const Launch& launch) {
    NcclLane::Operation operation(lane, call, stream);
    const std::string error = launch();
    if (!error.empty()) fail_(call, concat("got ", error, ", expected success"));
    operation.launched();
  }

  std::unique_ptr<PeerLink> link_;
  std::shared_ptr<NcclLane> out_, in_;
  Fail fail_;
};

/// By NCCL: a communicator for each direction. Both sides open and close the two in the same order.
class NcclChannel final : public Channel {
 public:
  /// Rank 0 of a communicator sends. `ids`: of the two directions, that from the first of the two neighbours first.
  NcclChannel(std::unique_ptr<Communicator> to_second,
              std::unique_ptr<Communicator> to_first,
              bool is_first,
              const CommCall& opening,
              const ncclUniqueId* ids)
      : is_first_(is_first), to_second_(std::move(to_second)), to_first_(std::move(to_first)) {
    to_second_->open(opening, ids[0], 2, is_first ? 0 : 1, kChannelBlocks);
    to_first_->open(opening, ids[1], 2, is_first ? 1 : 0, kChannelBlocks);
    connect(opening);
  }

  void send(const CommCall& call, const Tensor& x, cudaStream_t side) override {
    out().run(
        call, side, [&](ncclComm_t comm) { return ncclSend(x.const_data_ptr(), x.nbytes(), ncclInt8, 1, comm, side); });
  }
  void receive(const CommCall& call, Tensor& x, cudaStream_t stream) override {
    in().run(call, stream, [&](ncclComm_t comm) {
      return ncclRecv(x.mutable_data_ptr(), x.nbytes(), ncclInt8, 0, comm, stream);
    });
  }

 private:
  Communicator& out() { return is_first_ ? *to_second_ : *to_first_; }
  Communicator& in() { return is_first_ ? *to_first_ : *to_second_; }

  /// A byte each way. NCCL connects the two ends at the first message, and its callers wait for each other: first
  /// offers that cross would do so for ever.
  void connect(const CommCall& opening) {
    Tensor byte = at::zeros({1}, at::TensorOptions().dtype(at::kByte).device(at::kCUDA));
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    for (Communicator* direction : {to_second_.get(), to_first_.get()})
      direction == &out() ? send(opening, byte, stream) : receive(opening, byte, stream);
  }

  bool is_first_;
  std::unique_ptr<Communicator> to_second_, to_first_;
};

struct Neighbour {
  std::unique_ptr<Channel> channel;
  c10::cuda::CUDAStream stream;  // of what is offered
  at::cuda::CUDAEvent ready;
};

class NcclComm final : public CheckedComm {
 public:
  NcclComm(std::string_view kind,
           const std::vector<int>& ranks,
           std::shared_ptr<Comm> host,
           std::shared_ptr<NcclWatchdog> watchdog,
           std::shared_ptr<const ProgressLine> progress,
           bool peer_links)
      : CheckedComm(kind, ranks, host->rank(), "NCCL", std::move(progress)),
        ranks_(ranks),
        host_(std::move(host)),
        device_(at::kCUDA, at::cuda::current_device()),
        watchdog_(std::move(watchdog)),
        peer_links_(peer_links),
        whole_(make_communicator()) {}

  ~NcclComm() override {
    // Ends of links wait for each other, as NCCL's do; an error that unwinds this rank must not: the process ends.
    if (neighbours_.empty() || std::uncaught_exceptions() > 0) return;
    try {
      close_links();
    } catch (const std::exception& error) {
      HANOK_LOG(WARNING) << name() << ": got \"" << error.what() << "\" while its channels were closed";
    }
  }

 private:
  void do_all_reduce(const CommCall& call, Tensor& x, Reduce op) override {
    const ncclDataType_t type = type_of(call);
    run(call, x, [&](ncclComm_t comm) {
      return ncclAllReduce(x.data_ptr(), x.data_ptr(), x.numel(), type, nccl_op(op, x.scalar_type()), comm, stream());
    });
  }

  void do_all_gather(const CommCall& call, Tensor& out, const Tensor& shard) override {
    run(call, out, [&](ncclComm_t comm) {
      return ncclAllGather(shard.data_ptr(), out.data_ptr(), shard.nbytes(), ncclInt8, comm, stream());
    });
  }

  void do_reduce_scatter(const CommCall& call, Tensor& shard, const Tensor& in) override {
    const ncclDataType_t type = type_of(call);
    const ncclRedOp_t op = nccl_op(Reduce::kSum, in.scalar_type());
    run(call, in, [&](ncclComm_t comm) {
      return ncclReduceScatter(in.data_ptr(), shard.data_ptr(), shard.numel(), type, op, comm, stream());
    });
  }

  void do_all_to_all(const CommCall& call, Tensor& out, const Tensor& in, const Splits& splits) override {
    size_t row = in.element_size();
    for (const int64_t extent : in.sizes().slice(1)) row *= static_cast<size_t>(extent);
    const char* from = static_cast<const char*>(in.data_ptr());
    char* to = static_cast<char*>(out.data_ptr());
    run(call, in, [&](ncclComm_t comm) {
      ncclResult_t result = ncclGroupStart();
      const auto add = [&](ncclResult_t next) { result = result == ncclSuccess ? next : result; };
      for (int other = 0; other < size(); ++other) {
        const size_t sent = splits.send[other] * row, received = splits.receive[other] * row;
        if (sent > 0) add(ncclSend(from, sent, ncclInt8, other, comm, stream()));
        if (received > 0) add(ncclRecv(to, received, ncclInt8, other, comm, stream()));
        from += sent;
        to += received;
      }
      add(ncclGroupEnd());
      return result;
    });
  }

  void do_broadcast(const CommCall& call, Tensor& x, int root) override {
    run(call, x, [&](ncclComm_t comm) {
      return ncclBroadcast(x.data_ptr(), x.data_ptr(), x.nbytes(), ncclInt8, root, comm, stream());
    });
  }

  void do_send(const CommCall& call, const Tensor& x, int to) override {
    run(call, x, [&](ncclComm_t comm) {
      return x.nbytes() > 0 ? ncclSend(x.data_ptr(), x.nbytes(), ncclInt8, to, comm, stream()) : ncclSuccess;
    });
  }

  void do_recv(const CommCall& call, Tensor& x, int from) override {
    run(call, x, [&](ncclComm_t comm) {
      return x.nbytes() > 0 ? ncclRecv(x.data_ptr(), x.nbytes(), ncclInt8, from, comm, stream()) : ncclSuccess;
    });
  }

  void do_offer(const CommCall& call, const Tensor& x, int to) override {
    require_here(call, x);
    open_channels(call);
    const auto found = neighbours_.find(to);
    if (found == neighbours_.end()) return host_->offer(x.cpu(), to);
    if (x.nbytes() == 0) return;
    Neighbour& neighbour = found->second;
    neighbour.ready.record(c10::cuda::getCurrentCUDAStream(device_.index()));
    neighbour.ready.block(neighbour.stream);
    c10::cuda::CUDACachingAllocator::recordStream(x.storage().data_ptr(), neighbour.stream);
    neighbour.channel->send(call, x, neighbour.stream);
  }

  void do_take(const CommCall& call, Tensor& x, int from) override {
    require_here(call, x);
    open_channels(call);
    const auto found = neighbours_.find(from);
    if (found == neighbours_.end()) {
      Tensor host = at::empty(x.sizes(), x.options().device(at::kCPU));
      host_->take(host, from);
      x.copy_(host);
      return;
    }
    if (x.nbytes() > 0) found->second.channel->receive(call, x, stream());
  }

  /// Channels between neighbours of the ring, which is all that pipelines use; others go through the host. Every rank
  /// comes here at its first offer or take, before which it waits for none; neighbours meet in the order of the ring.
  void open_channels(const CommCall& call) {
    if (has_channels_) return;
    has_channels_ = true;
    const c10::cuda::CUDAGuard guard(device_);
    std::vector<Pair> pairs = own_pairs();
    Tensor missing = at::zeros({1}, at::kLong);
    for (Pair& pair : pairs) {
      pair.link = linked(pair);
      missing += pair.link ? 0 : 1;
    }
    host_->all_reduce(missing, Reduce::kSum);
    std::vector<ncclUniqueId> ids;
    if (missing.item<int64_t>() > 0) ids = shared_ids(call, 2 * size());
    for (Pair& pair : pairs) {
      CommCall opening{"opening of a channel"};
      opening.peer = pair.other;
      std::unique_ptr<Channel> channel;
      if (pair.link) {
        channel = std::make_unique<LinkChannel>(std::move(pair.link), open_lane(), open_lane(), failing());
      } else {
        channel = std::make_unique<NcclChannel>(
            make_communicator(), make_communicator(), pair.is_first(), opening, &ids.at(2 * pair.index));
      }
      neighbours_.emplace(pair.other, Neighbour{std::move(channel), c10::cuda::getStreamFromPool(true), {}});
    }
  }

  /// Two neighbours of the ring, of which this rank is one.
  struct Pair {
    int index, own, other;
    std::unique_ptr<PeerLink> link;
    bool is_first() const { return own == index; }
  };

  /// In the order in which neighbours meet.
  std::vector<Pair> own_pairs() const {
    std::vector<Pair> out;
    for (int first = 0; first < (size() == 2 ? 1 : size()); ++first) {
      const int second = (first + 1) % size();
      if (rank() == first) out.push_back({first, first, second, nullptr});
      if (rank() == second) out.push_back({first, second, first, nullptr});
    }
    return out;
  }

  /// What the other of the pair says.
  Tensor exchanged(const Pair& pair, const Tensor& own) {
    Tensor other = at::empty_like(own);
    if (pair.is_first()) host_->send(own, pair.other);
    host_->recv(other, pair.other);
    if (!pair.is_first()) host_->send(own, pair.other);
    return other;
  }

  bool both(const Pair& pair, bool own) {
    return exchanged(pair, at::full({1}, own ? 1 : 0, at::kLong)).item<int64_t>() == 1 && own;
  }

  /// Null where the two GPUs do not reach each other's memory.
  std::unique_ptr<PeerLink> linked(const Pair& pair) {
    if (!both(pair, peer_links_)) return nullptr;
    auto link = std::make_unique<PeerLink>();
    std::string reason = link->open(exchanged(pair, link->card()));
    bool works = both(pair, reason.empty());
    if (works) {
      works = both(pair, link->try_out());
      if (!works) reason = "a message came changed";
    }
    if (works) return link;
    link->let_go();
    both(pair, true);
    link->free();
    const int own = ranks_[pair.own], other = ranks_[pair.other];
    HANOK_LOG(INFO) << name() << ": messages between ranks " << own << " and " << other << " go through NCCL ("
                    << (reason.empty() ? "refused at the other end" : reason) << ")";
    return nullptr;
  }

  /// When nothing is under way any more on any rank.
  void close_links() {
    const c10::cuda::CUDAGuard guard(device_);
    for (auto& [other, neighbour] : neighbours_) neighbour.stream.synchronize();
    c10::cuda::getCurrentCUDAStream(device_.index()).synchronize();
    const auto each = [&](auto step) {
      host_->barrier();
      for (auto& [other, neighbour] : neighbours_)
        if (PeerLink* link = neighbour.channel->link()) (link->*step)();
    };
    each(&PeerLink::let_go);
    each(&PeerLink::free);
  }

  /// The one operation that waits on the host: when it returns, every rank has reached it and its earlier work is done.
  void do_barrier(const CommCall& call) override {
    Tensor token = at::zeros({1}, at::TensorOptions().dtype(at::kInt).device(device_));
    CommCall sum = call;
    sum.dtype = at::kInt;
    do_all_reduce(sum, token, Reduce::kSum);
    while (!at::cuda::getCurrentCUDAStream(device_.index()).query())
      std::this_thread::sleep_for(std::chrono::microseconds(20));
  }

  /// On the current stream, over all ranks of the group.
  template <class Launch>
  void run(const CommCall& call, const Tensor& x, const Launch& launch) {
    require_here(call, x);
    if (!is_open_) open(call);
    whole_->run(call, stream(), launch);
  }

  void require_here(const CommCall& call, const Tensor& x) const {
    HANOK_REQUIRE(x.device() == device_, kShape)
        << call.operation << ": got a tensor on " << x.device().str() << ", expected " << device_.str() << "; group "
        << name() << "; move it to the GPU of this rank";
  }

  void open(const CommCall& call) {
    const c10::cuda::CUDAGuard guard(device_);
    const std::vector<ncclUniqueId> ids = shared_ids(call, 1);
    is_open_ = true;
    whole_->open(call, ids[0], size(), rank());
  }

  /// New ids of communicators, made by rank 0.
  std::vector<ncclUniqueId> shared_ids(const CommCall& call, int count) {
    std::vector<ncclUniqueId> ids(count);
    for (int i = 0; rank() == 0 && i < count; ++i) {
      const ncclResult_t result = ncclGetUniqueId(&ids[i]);
      if (result != ncclSuccess) fail_with(call, concat("got ", ncclGetErrorString(result), ", expected an id"));
    }
    Tensor bytes = at::from_blob(ids.data(), {static_cast<int64_t>(ids.size() * sizeof(ncclUniqueId))}, at::kByte);
    host_->broadcast(bytes, 0);
    return ids;
  }

  [[noreturn]] void fail_with(const CommCall& call, const std::string& what) const {
    if (what.find("out of memory") != std::string::npos) {  // NCCL has no code of its own for it
      const Error error = comm_error(call,
                                     what,
                                     name(),
                                     "NCCL",
                                     "leave it room on the GPU: lower rows_per_micro_batch, set recompute, or cut the "
                                     "model over more GPUs");
      throw Error(ErrorKind::kDevice, error.what());
    }
    fail(call, what, "see the first error of the other ranks, or which of them was killed");
  }

  std::unique_ptr<Communicator> make_communicator() { return std::make_unique<Communicator>(open_lane(), failing()); }

  std::shared_ptr<NcclLane> open_lane() const { return watchdog_->open_lane(std::string(name()), ranks_, progress()); }

  std::function<void(const CommCall&, const std::string&)> failing() const {
    return [this](const CommCall& call, const std::string& what) { fail_with(call, what); };
  }

  ncclDataType_t type_of(const CommCall& call) const {
    const std::optional<ncclDataType_t> type = arithmetic_type(call.dtype);
    if (!type) fail(call, "got a dtype that NCCL cannot add, expected a float or integer NCCL has", "convert it first");
    return *type;
  }

  cudaStream_t stream() const { return at::cuda::getCurrentCUDAStream(device_.index()); }

  std::vector<int> ranks_;
  std::shared_ptr<Comm> host_;
  at::Device device_;
  std::shared_ptr<NcclWatchdog> watchdog_;
  bool peer_links_;
  std::unique_ptr<Communicator> whole_;
  std::map<int, Neighbour> neighbours_;  // by rank
  bool is_open_ = false, has_channels_ = false;
};

}  // namespace

void require_nccl() {
  HANOK_REQUIRE(at::cuda::is_available(), kDevice)
      << "NCCL back-end: got no visible GPU, expected one per rank of this host; CUDA driver and CUDA_VISIBLE_DEVICES; "
      << "run on a machine with GPUs, or train on the CPU";
}

std::shared_ptr<NcclWatchdog> start_nccl_watchdog(double stall_timeout_s,
                                                  std::function<void(const Error&)> end_process) {
  return std::make_shared<NcclWatchdog>(stall_timeout_s, std::move(end_process));
}

std::shared_ptr<Comm> open_nccl(std::string_view kind,
                                const std::vector<int>& ranks,
                                const std::shared_ptr<Comm>& host,
                                const std::shared_ptr<NcclWatchdog>& watchdog,
                                std::shared_ptr<const ProgressLine> progress,
                                bool peer_links) {
  return std::make_shared<NcclComm>(kind, ranks, host, watchdog, std::move(progress), peer_links);
}

}  // namespace hanok
