#include "base/cuda/pin.h"

#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>

namespace hanok {
namespace {

/// call() as a thread may make it that has used no GPU yet, while another one captures a graph.
template <class Call>
std::string refusal_of(at::Device device, const Call& call) {
  if (c10::cuda::device_count() == 0) return "no GPU is visible";
  const c10::cuda::CUDAGuard guard(device);  // a thread begins on GPU 0, and the call would make a context there
  const c10::cuda::CUDAStreamCaptureModeGuard relaxed(cudaStreamCaptureModeRelaxed);
  const cudaError_t status = call();
  if (status == cudaSuccess) return "";
  cudaGetLastError();  // or the next check of a kernel would find it
  return cudaGetErrorString(status);
}

}  // namespace

std::string pin_host_memory(void* begin, size_t bytes, at::Device device) {
  return refusal_of(device, [&] { return cudaHostRegister(begin, bytes, cudaHostRegisterPortable); });
}

std::string unpin_host_memory(void* begin, at::Device device) {
  return refusal_of(device, [&] { return cudaHostUnregister(begin); });
}

}  // namespace hanok
