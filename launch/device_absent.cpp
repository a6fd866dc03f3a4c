#include "base/error.h"
#include "launch/device.h"
#include "launch/version.h"

namespace hanok {

std::string nccl_version() {
  return "absent: this build found no nvcc, CUDA headers or NCCL";
}

std::vector<DeviceInfo> visible_gpus() {
  return {};
}

bool reads_peer(int, int) {
  return false;
}

std::vector<std::pair<std::string, std::string>> accelerator_versions() {
  return {{"CUDA", "absent from this build"}, {"cuDNN", "absent from this build"}, {"NCCL", nccl_version()}};
}

RefusedAllocation last_refused_allocation() {
  return {};
}

at::Device bind_device(const std::string& wanted, int local_rank, int local_size) {
  HANOK_REQUIRE(wanted != "cuda", kDevice)
      << "device: got cuda, expected cpu: this build found no nvcc or NCCL; rebuild where they are, or set device: cpu";
  return at::kCPU;
}

}  // namespace hanok
