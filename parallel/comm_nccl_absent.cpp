#include "base/error.h"
#include "parallel/comm_nccl.h"

namespace hanok {

void require_nccl() {
  HANOK_FAIL(kDevice) << "NCCL back-end: got a build without it, expected one with CUDA and NCCL; "
                      << "the build found no nccl.h, no CUDA headers or no libtorch with CUDA; "
                      << "install the missing part and build again, or train on the CPU";
}

std::shared_ptr<NcclWatchdog> start_nccl_watchdog(double, std::function<void(const Error&)>) {
  require_nccl();
  return nullptr;
}

std::shared_ptr<Comm> open_nccl(std::string_view,
                                const std::vector<int>&,
                                const std::shared_ptr<Comm>&,
                                const std::shared_ptr<NcclWatchdog>&,
                                std::shared_ptr<const ProgressLine>,
                                bool) {
  require_nccl();
  return nullptr;
}

}  // namespace hanok
