#include "base/error.h"
#include "launch/device.h"
#include "launch/version.h"

namespace hanok {

std::string nccl_version() {
  return "absent: this build found no CUDA headers or NCCL";
}

std::vector<DeviceInfo> visible_gpus() {
  return {};
}

at::Device bind_device(const std::string& wanted, int local_rank, int local_size) {
  HANOK_REQUIRE(wanted != "cuda", kDevice)
      << "device: got cuda, expected cpu: this build found no CUDA or NCCL; rebuild where they are, or set device: cpu";
  return at::kCPU;
}

}  // namespace hanok
