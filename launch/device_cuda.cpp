#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <fstream>
#include <mutex>

#include "base/error.h"
#include "launch/device.h"
#include "launch/version.h"

namespace hanok {

namespace {

/// The kernel module's own text: "NVRM version: ... 580.95.05 ...".
std::string driver_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string word;
  while (file >> word)
    if (word.size() > 4 && std::isdigit(static_cast<unsigned char>(word[0])) && word.find('.') != std::string::npos)
      return word;
  return "none";
}

std::string cuda_text(int version) {
  return concat(version / 1000, ".", version % 1000 / 10);
}

std::mutex refusal_mutex;
RefusedAllocation refusal;

/// Called by the allocator before it throws: later the tensors that filled the memory are gone.
void note_refusal(int64_t device, size_t wanted, size_t allowed, size_t free) {
  const auto index = static_cast<c10::DeviceIndex>(device);
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(index);
  cudaDeviceProp properties;
  const bool is_known = cudaGetDeviceProperties(&properties, index) == cudaSuccess;
  const std::lock_guard lock(refusal_mutex);
  refusal = {.wanted = static_cast<double>(wanted),
             .present = static_cast<double>(is_known ? properties.totalGlobalMem : allowed),
             .free = static_cast<double>(free),
             .allowed = static_cast<double>(allowed),
             .allocated = static_cast<double>(stats.allocated_bytes[0].current),
             .reserved = static_cast<double>(stats.reserved_bytes[0].current)};
}

}  // namespace

RefusedAllocation last_refused_allocation() {
  const std::lock_guard lock(refusal_mutex);
  return refusal;
}

std::string nccl_version() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return "does not answer";
  return concat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

bool reads_peer(int from, int to) {
  int can = 0;
  return cudaDeviceCanAccessPeer(&can, from, to) == cudaSuccess && can != 0;
}

std::vector<std::pair<std::string, std::string>> accelerator_versions() {
  int runtime = 0, driver = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);  // 0 without one
  cudaGetLastError();
  const auto& hooks = at::detail::getCUDAHooks();
  const long cudnn = hooks.hasCuDNN() ? hooks.versionRuntimeCuDNN() : 0;
  return {{"CUDA",
           concat("compiled ",
                  cuda_text(CUDART_VERSION),
                  ", loaded ",
                  cuda_text(runtime),
                  ", the driver allows ",
                  driver ? cuda_text(driver) : "none: there is no driver")},
          {"driver", driver_version()},
          {"cuDNN", cudnn ? concat(cudnn / 10000, ".", cudnn / 100 % 100, ".", cudnn % 100) : "absent"},
          {"NCCL", concat("compiled ", NCCL_MAJOR, ".", NCCL_MINOR, ".", NCCL_PATCH, ", loaded ", nccl_version())}};
}

std::vector<DeviceInfo> visible_gpus() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // clear it: a machine without a driver is no error
    return {};
  }
  std::vector<DeviceInfo> out;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    HANOK_REQUIRE(cudaGetDeviceProperties(&properties, i) == cudaSuccess, kDevice)
        << "GPU " << i << ": the driver does not answer; run trainer doctor";
    out.push_back(
        {properties.name, static_cast<int64_t>(properties.totalGlobalMem), properties.major, properties.minor});
  }
  return out;
}

at::Device bind_device(const std::string& wanted, int local_rank, int local_size) {
  if (wanted == "cpu") return at::kCPU;
  const auto gpus = visible_gpus();
  if (gpus.empty()) {
    HANOK_REQUIRE(wanted != "cuda", kDevice)
        << "device: got cuda, expected a visible GPU, found none; check the driver, or set device: cpu";
    return at::kCPU;
  }
  HANOK_REQUIRE(static_cast<int>(gpus.size()) >= local_size, kDevice)
      << "device: got " << local_size << " ranks on this node, expected at most one for each of its " << gpus.size()
      << " visible GPUs; start fewer ranks, or set device: cpu";
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(local_rank));
  at::globalContext().lazyInitDevice(at::kCUDA);  // the allocator exists from here on
  c10::cuda::CUDACachingAllocator::attachOutOfMemoryObserver(note_refusal);
  return {at::kCUDA, static_cast<c10::DeviceIndex>(local_rank)};
}

}  // namespace hanok
