// NCCL on the current CUDA stream. The id of a communicator travels over MPI. Nothing waits on the host but barrier().
#include "parallel/comm_nccl.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <nccl.h>

#include <chrono>
#include <thread>

#include "parallel/comm_base.h"

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

class NcclComm final : public CheckedComm {
 public:
  NcclComm(std::string_view kind, const std::vector<int>& ranks, std::shared_ptr<Comm> host, double stall_timeout_s)
      : CheckedComm(kind, ranks, host->rank(), "NCCL"),
        host_(std::move(host)),
        device_(at::kCUDA, at::cuda::current_device()),
        stall_timeout_s_(stall_timeout_s) {}

  ~NcclComm() override {
    if (comm_ == nullptr) return;
    // Destroying waits for the peers, who may be gone when an error unwinds this rank; aborting is local.
    std::uncaught_exceptions() > 0 ? ncclCommAbort(comm_) : ncclCommDestroy(comm_);
  }

 private:
  void do_all_reduce(const CommCall& call, Tensor& x, Reduce op) override {
    begin(call, x);
    check(call,
          ncclAllReduce(
              x.data_ptr(), x.data_ptr(), x.numel(), type_of(call), nccl_op(op, x.scalar_type()), comm_, stream()));
  }

  void do_all_gather(const CommCall& call, Tensor& out, const Tensor& shard) override {
    begin(call, out);
    check(call, ncclAllGather(shard.data_ptr(), out.data_ptr(), shard.nbytes(), ncclInt8, comm_, stream()));
  }

  void do_reduce_scatter(const CommCall& call, Tensor& shard, const Tensor& in) override {
    begin(call, in);
    check(call,
          ncclReduceScatter(in.data_ptr(),
                            shard.data_ptr(),
                            shard.numel(),
                            type_of(call),
                            nccl_op(Reduce::kSum, in.scalar_type()),
                            comm_,
                            stream()));
  }

  void do_all_to_all(const CommCall& call, Tensor& out, const Tensor& in, const Splits& splits) override {
    begin(call, in);
    size_t row = in.element_size();
    for (const int64_t extent : in.sizes().slice(1)) row *= static_cast<size_t>(extent);
    const char* from = static_cast<const char*>(in.data_ptr());
    char* to = static_cast<char*>(out.data_ptr());
    check(call, ncclGroupStart());
    for (int other = 0; other < size(); ++other) {
      const size_t sent = splits.send[other] * row, received = splits.receive[other] * row;
      if (sent > 0) check(call, ncclSend(from, sent, ncclInt8, other, comm_, stream()));
      if (received > 0) check(call, ncclRecv(to, received, ncclInt8, other, comm_, stream()));
      from += sent;
      to += received;
    }
    check(call, ncclGroupEnd());
  }

  void do_broadcast(const CommCall& call, Tensor& x, int root) override {
    begin(call, x);
    check(call, ncclBroadcast(x.data_ptr(), x.data_ptr(), x.nbytes(), ncclInt8, root, comm_, stream()));
  }

  void do_send(const CommCall& call, const Tensor& x, int to) override {
    begin(call, x);
    if (x.nbytes() > 0) check(call, ncclSend(x.data_ptr(), x.nbytes(), ncclInt8, to, comm_, stream()));
  }

  void do_recv(const CommCall& call, Tensor& x, int from) override {
    begin(call, x);
    if (x.nbytes() > 0) check(call, ncclRecv(x.data_ptr(), x.nbytes(), ncclInt8, from, comm_, stream()));
  }

  // Two neighbours of a pipeline send to each other at times of their own; operations of one communicator on one stream
  // would wait for each other. The host keeps what is not taken yet.
  void do_offer(const CommCall&, const Tensor& x, int to) override { host_->offer(x.cpu(), to); }
  void do_take(const CommCall&, Tensor& x, int from) override {
    Tensor host = at::empty(x.sizes(), x.options().device(at::kCPU));
    host_->take(host, from);
    x.copy_(host);
  }

  /// The one operation that waits on the host: when it returns, every rank has reached it and its earlier work is done.
  void do_barrier(const CommCall& call) override {
    Tensor token = at::zeros({1}, at::TensorOptions().dtype(at::kInt).device(device_));
    do_all_reduce(call, token, Reduce::kSum);
    const auto start = std::chrono::steady_clock::now();
    while (!at::cuda::getCurrentCUDAStream(device_.index()).query()) {
      check_alive(call);
      const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
      if (waited.count() > stall_timeout_s_) {
        give_up();
        fail(call,
             concat("got no end of it in ", stall_timeout_s_, " s, expected all ranks to arrive"),
             "look for the operation in which the other ranks are, or raise the stall timeout");
      }
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }

  void begin(const CommCall& call, const Tensor& x) {
    HANOK_REQUIRE(x.device() == device_, kShape)
        << call.operation << ": got a tensor on " << x.device().str() << ", expected " << device_.str() << "; group "
        << name() << "; move it to the GPU of this rank";
    if (broken_) fail(call, "got a group that failed before, expected a working one", "restart the job");
    if (comm_ == nullptr) open(call);
    check_alive(call);
  }

  void open(const CommCall& call) {
    const c10::cuda::CUDAGuard guard(device_);
    ncclUniqueId id{};
    if (rank() == 0) check(call, ncclGetUniqueId(&id));
    Tensor bytes = at::from_blob(&id, {static_cast<int64_t>(sizeof id)}, at::kByte);
    host_->broadcast(bytes, 0);
    check(call, ncclCommInitRank(&comm_, size(), id, rank()));
  }

  /// A peer that is gone or a network that failed shows here, some operations later.
  void check_alive(const CommCall& call) {
    ncclResult_t state = ncclSuccess;
    check(call, ncclCommGetAsyncError(comm_, &state));
    check(call, state);
  }

  void check(const CommCall& call, ncclResult_t result) {
    if (result == ncclSuccess || result == ncclInProgress) return;
    const std::string detail = comm_ == nullptr ? "" : ncclGetLastError(comm_);
    give_up();
    fail(call,
         concat("got ", ncclGetErrorString(result), detail.empty() ? "" : ": ", detail, ", expected success"),
         "see the first error of the other ranks");
  }

  void give_up() {
    broken_ = true;
    if (comm_ != nullptr) ncclCommAbort(comm_);
    comm_ = nullptr;
  }

  ncclDataType_t type_of(const CommCall& call) const {
    const std::optional<ncclDataType_t> type = arithmetic_type(call.dtype);
    if (!type) fail(call, "got a dtype that NCCL cannot add, expected a float or integer NCCL has", "convert it first");
    return *type;
  }

  cudaStream_t stream() const { return at::cuda::getCurrentCUDAStream(device_.index()); }

  std::shared_ptr<Comm> host_;
  at::Device device_;
  double stall_timeout_s_;
  ncclComm_t comm_ = nullptr;
  bool broken_ = false;
};

}  // namespace

void require_nccl() {
  HANOK_REQUIRE(at::cuda::is_available(), kDevice)
      << "NCCL back-end: got no visible GPU, expected one per rank of this host; CUDA driver and CUDA_VISIBLE_DEVICES; "
      << "run on a machine with GPUs, or train on the CPU";
}

std::shared_ptr<Comm> open_nccl(std::string_view kind,
                                const std::vector<int>& ranks,
                                const std::shared_ptr<Comm>& host,
                                double stall_timeout_s) {
  return std::make_shared<NcclComm>(kind, ranks, host, stall_timeout_s);
}

}  // namespace hanok
