// From tensors to the arguments of CUDA kernels. Two implementations: call.cpp, and absent.cpp in builds without nvcc.
#pragma once

#include <string_view>

#include "base/cuda/launch.h"
#include "base/tensor.h"

namespace hanok {

/// How to launch `kernel` on x: its dtype, and the current stream of its device.
/// errors: kShape for a dtype other than float32, float64, bfloat16 and float16; kDevice where x is on no GPU, or this
/// build has no CUDA kernels
CudaCall cuda_call(const Tensor& x, std::string_view kernel);
CudaType cuda_type(at::ScalarType dtype, std::string_view kernel);
/// The current stream of the device of x, for kernels on integers. errors: kDevice as above
CUstream_st* cuda_stream(const Tensor& x, std::string_view kernel);
/// Data of a contiguous tensor, null when it is undefined.
const void* data_of(const Tensor& x);
void* mutable_data_of(const Tensor& x);

}  // namespace hanok
