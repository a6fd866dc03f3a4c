#include "base/cuda/call.h"
#include "base/cuda/pin.h"
#include "base/error.h"

namespace hanok {

CudaType cuda_type(at::ScalarType, std::string_view kernel) {
  HANOK_FAIL(kDevice) << kernel << ": got a tensor on a GPU, expected the CPU: this build has no CUDA kernels; "
                      << "install nvcc and build again, or set device: cpu";
}

CudaCall cuda_call(const Tensor&, std::string_view kernel) {
  return {.type = cuda_type(at::kFloat, kernel)};
}

CUstream_st* cuda_stream(const Tensor&, std::string_view kernel) {
  cuda_type(at::kFloat, kernel);
  return nullptr;
}

const void* data_of(const Tensor&) {
  return nullptr;
}

void* mutable_data_of(const Tensor&) {
  return nullptr;
}

std::string pin_host_memory(void*, size_t, at::Device) {
  return "this build has no CUDA";
}

std::string unpin_host_memory(void*, at::Device) {
  return "";
}

}  // namespace hanok
