#include "parallel/peer_link.h"

#include <c10/cuda/CUDAStream.h>
#include <cuda.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "base/host_name.h"
#include "parallel/groups.h"

namespace hanok {
namespace {

constexpr size_t kSlotBytes = size_t{16} << 20;
constexpr uint32_t kSlots = 4;
// Where they lie in an end's memory. Each counter has one writer: the other end.
constexpr size_t kArrived = 0;  // pieces that the other end has put into the slots
constexpr size_t kTaken = 256;  // pieces of this end that the other one has taken out
constexpr size_t kFirstSlot = 4096;
static_assert(kFirstSlot + kSlots * kSlotBytes == kLinkBytes);

struct Card {
  char host[128];
  int64_t process;
  int64_t has_memory;
  cudaIpcMemHandle_t memory;
};

/// Name and start of the machine: containers of one host may have one name, machines made from one image as well.
std::string this_host() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  return host_name() + " " + boot;
}

/// The driver's operations on a stream; libcuda is not linked.
struct Driver {
  using Call = CUresult (*)(CUstream, CUdeviceptr, cuuint32_t, unsigned);
  Call wait = nullptr, write = nullptr;
  unsigned wait_flags = CU_STREAM_WAIT_VALUE_GEQ;

  Driver() {
    wait = find("cuStreamWaitValue32");
    write = find("cuStreamWriteValue32");
    int device = 0, can_flush = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&can_flush, cudaDevAttrCanFlushRemoteWrites, device);
    if (can_flush != 0) wait_flags |= CU_STREAM_WAIT_VALUE_FLUSH;
  }
  static Call find(const char* name) {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t status = cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &found);
    if (status == cudaSuccess && found == cudaDriverEntryPointSuccess) return reinterpret_cast<Call>(entry);
    cudaGetLastError();
    return nullptr;
  }
  bool is_there() const { return wait != nullptr && write != nullptr; }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

std::string said(cudaError_t status) {
  if (status == cudaSuccess) return "";
  cudaGetLastError();  // or the next check of a kernel would find it
  return cudaGetErrorString(status);
}

std::string said(CUresult status) {
  return status == CUDA_SUCCESS ? "" : concat("error ", static_cast<int>(status), " of the driver");
}

/// Waits until the counter has come to `value`, which may have passed 2^32.
std::string wait_for(char* counter, uint32_t value, cudaStream_t stream) {
  return said(driver().wait(stream, reinterpret_cast<CUdeviceptr>(counter), value, driver().wait_flags));
}

/// After all that came before on the stream is visible to both GPUs.
std::string set(char* counter, uint32_t value, cudaStream_t stream) {
  return said(driver().write(stream, reinterpret_cast<CUdeviceptr>(counter), value, CU_STREAM_WRITE_VALUE_DEFAULT));
}

char* slot(char* memory, uint32_t piece) {
  return memory + kFirstSlot + (piece % kSlots) * kSlotBytes;
}

}  // namespace

PeerLink::PeerLink() {
  void* memory = nullptr;
  reason_ = said(cudaMalloc(&memory, kLinkBytes));
  if (!reason_.empty()) return;
  own_ = static_cast<char*>(memory);
  reason_ = said(cudaMemset(own_, 0, kFirstSlot));
  if (reason_.empty()) reason_ = said(cudaDeviceSynchronize());  // before the other end can write there
}

Tensor PeerLink::card() const {
  Card card{};
  const std::string host = this_host();
  std::copy_n(host.begin(), std::min(host.size(), sizeof(card.host) - 1), card.host);
  card.process = getpid();
  card.has_memory =
      reason_.empty() && driver().is_there() && cudaIpcGetMemHandle(&card.memory, own_) == cudaSuccess ? 1 : 0;
  cudaGetLastError();
  return at::from_blob(&card, {static_cast<int64_t>(sizeof(card))}, at::kByte).clone();
}

std::string PeerLink::open(const Tensor& card_of_other) {
  Card other{};
  std::memcpy(&other, card_of_other.const_data_ptr(), sizeof(other));
  if (!reason_.empty()) return reason_;
  if (!driver().is_there()) return "the driver has no waits of a stream for memory";
  if (other.host != this_host().substr(0, sizeof(other.host) - 1)) return "another host";
  if (other.process == getpid()) return "the same process";
  if (other.has_memory == 0) return "the other end has no memory to write to";
  void* memory = nullptr;
  const std::string refusal = said(cudaIpcOpenMemHandle(&memory, other.memory, cudaIpcMemLazyEnablePeerAccess));
  if (refusal.empty()) other_ = static_cast<char*>(memory);
  return refusal;
}

bool PeerLink::try_out() {
  const auto options = at::TensorOptions().dtype(at::kInt).device(at::kCUDA);
  const Tensor sent = at::arange(1 << 16, options), came = at::zeros_like(sent);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  return send(sent.const_data_ptr(), sent.nbytes(), stream).empty() &&
         receive(came.mutable_data_ptr(), came.nbytes(), stream).empty() && at::equal(sent, came);
}

std::string PeerLink::send(const void* data, size_t bytes, cudaStream_t stream) {
  const char* from = static_cast<const char*>(data);
  for (size_t done = 0; done < bytes; done += kSlotBytes, ++sent_) {
    // The counters begin at 0: the first pieces find all slots free.
    std::string error = wait_for(own_ + kTaken, sent_ + 1 - kSlots, stream);
    if (error.empty())
      error = said(cudaMemcpyAsync(
          slot(other_, sent_), from + done, std::min(kSlotBytes, bytes - done), cudaMemcpyDeviceToDevice, stream));
    if (error.empty()) error = set(other_ + kArrived, sent_ + 1, stream);
    if (!error.empty()) return error;
  }
  return "";
}

std::string PeerLink::receive(void* data, size_t bytes, cudaStream_t stream) {
  char* to = static_cast<char*>(data);
  for (size_t done = 0; done < bytes; done += kSlotBytes, ++received_) {
    std::string error = wait_for(own_ + kArrived, received_ + 1, stream);
    if (error.empty())
      error = said(cudaMemcpyAsync(
          to + done, slot(own_, received_), std::min(kSlotBytes, bytes - done), cudaMemcpyDeviceToDevice, stream));
    if (error.empty()) error = set(other_ + kTaken, received_ + 1, stream);
    if (!error.empty()) return error;
  }
  return "";
}

void PeerLink::let_go() {
  if (other_ != nullptr) said(cudaIpcCloseMemHandle(other_));
  other_ = nullptr;
}

void PeerLink::free() {
  if (own_ != nullptr) said(cudaFree(own_));
  own_ = nullptr;
}

}  // namespace hanok
