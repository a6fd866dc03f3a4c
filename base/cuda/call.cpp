#include "base/cuda/call.h"

#include <c10/cuda/CUDAStream.h>

#include "base/error.h"

namespace hanok {

CudaType cuda_type(at::ScalarType dtype, std::string_view kernel) {
  switch (dtype) {
    case at::kFloat: return CudaType::kF32;
    case at::kDouble: return CudaType::kF64;
    case at::kBFloat16: return CudaType::kBf16;
    case at::kHalf: return CudaType::kF16;
    default:
      HANOK_FAIL(kShape) << "dtype: got " << at::toString(dtype)
                         << ", expected float32, float64, bfloat16 or float16; kernel " << kernel;
  }
}

CUstream_st* cuda_stream(const Tensor& x, std::string_view kernel) {
  HANOK_REQUIRE(x.is_cuda(), kDevice) << kernel << ": got a tensor on " << x.device().str()
                                      << ", expected one on the CPU or a CUDA device";
  return c10::cuda::getCurrentCUDAStream(x.device().index()).stream();
}

CudaCall cuda_call(const Tensor& x, std::string_view kernel) {
  CUstream_st* stream = cuda_stream(x, kernel);
  return {.type = cuda_type(x.scalar_type(), kernel), .stream = stream};
}

const void* data_of(const Tensor& x) {
  return x.defined() ? x.const_data_ptr() : nullptr;
}

void* mutable_data_of(const Tensor& x) {
  return x.defined() ? x.mutable_data_ptr() : nullptr;
}

}  // namespace hanok
