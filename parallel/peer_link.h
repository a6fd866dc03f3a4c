// Messages between two GPUs of a host that reach each other's memory: copy engines carry them, and what waits takes no
// multiprocessor from the products that run meanwhile (NCCL's sends and receives are kernels).
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "base/tensor.h"

namespace hanok {

/// One end, on the current device. Both directions at once, each in its own order. Data and counters of either
/// direction lie in memory of the GPU that reads them; the other process writes there (CUDA IPC).
class PeerLink {
 public:
  PeerLink();
  /// let_go() and free() come first; without them the memory stays until the process ends, because the other end may
  /// still write.
  ~PeerLink() = default;
  PeerLink(const PeerLink&) = delete;
  PeerLink& operator=(const PeerLink&) = delete;

  /// What the other end needs to know of this one: uint8, of the same size everywhere.
  Tensor card() const;
  /// Reaches for the other end. -> empty, or why the two do not reach each other: another host, GPUs without a way to
  /// each other, the same process
  std::string open(const Tensor& card_of_other);
  /// A message each way, compared with what it should be; both ends call it. -> false: what came is something else
  bool try_out();

  /// A message leaves when the stream comes to it and the other end has room, kSlots x kSlotBytes ahead of its
  /// receive(). Ends are not checked against each other: both must know the size. -> empty, or what the driver said
  std::string send(const void* data, size_t bytes, cudaStream_t stream);
  std::string receive(void* data, size_t bytes, cudaStream_t stream);

  /// In three steps, between which both ends wait for each other: nothing is sent any more; let go of the other's
  /// memory; give one's own back.
  void let_go();
  void free();

 private:
  char* own_ = nullptr;    // two counters, then slots
  char* other_ = nullptr;  // the same of the other end
  std::string reason_;     // why there is no own memory
  uint32_t sent_ = 0, received_ = 0;
};

}  // namespace hanok
