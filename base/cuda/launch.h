// What the source of a kernel and its caller both see: no CUDA header and no torch header.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace hanok {

enum class CudaType { kF32, kF64, kBf16, kF16 };

/// Element type of a kernel's main operand, and the stream that it runs on.
struct CudaCall {
  CudaType type = CudaType::kF32;
  CUstream_st* stream = nullptr;
};

}  // namespace hanok
