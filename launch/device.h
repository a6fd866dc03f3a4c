// Which device a rank computes on.
#pragma once

#include <string>
#include <vector>

#include "base/tensor.h"

namespace hanok {

struct DeviceInfo {
  std::string name;
  int64_t memory_bytes = 0;
  int major = 0, minor = 0;  // compute capability
};
std::vector<DeviceInfo> visible_gpus();
/// Whether GPU `from` reads the memory of GPU `to` without the host.
bool reads_peer(int from, int to);
/// ("CUDA", "13.0, driver for 13.1"): what the accelerator's libraries say of themselves.
std::vector<std::pair<std::string, std::string>> accelerator_versions();

/// The memory of a GPU when an allocation was refused. Bytes.
struct RefusedAllocation {
  double wanted = 0;
  double present = 0, free = 0;        // as the driver says
  double allowed = 0;                  // of `present`, to this process
  double allocated = 0, reserved = 0;  // by libtorch: in tensors, and taken from the driver for them
};
/// The newest of this process; zeros before there is one.
RefusedAllocation last_refused_allocation();

/// auto: the GPU numbered `local_rank` when there is one for every rank of the node, else the CPU when there are no
/// GPUs. errors: kDevice when there are GPUs but fewer than ranks, or `cuda` is asked for and there are none
at::Device bind_device(const std::string& wanted, int local_rank, int local_size);

}  // namespace hanok
