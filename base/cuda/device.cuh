// What kernels share: arithmetic in a wider type, 16-byte packs, sums over a block, sizes of grids. For .cu files only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "base/cuda/launch.h"
#include "base/error.h"

namespace hanok::cuda {

/// What a kernel computes in: f64 for f64, else f32.
template <class T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <class T>
using Wide = typename WideOf<T>::type;

__device__ inline float widen(float x) {
  return x;
}
__device__ inline double widen(double x) {
  return x;
}
__device__ inline float widen(__half x) {
  return __half2float(x);
}
__device__ inline float widen(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <class T>
__device__ inline T narrow(Wide<T> x) {
  return x;
}
template <>
__device__ inline __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

/// x as a T would hold it.
template <class T>
__device__ inline Wide<T> rounded(Wide<T> x) {
  return widen(narrow<T>(x));
}

/// N neighbours that move in one access.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

template <class T>
constexpr int kPackOf = 16 / sizeof(T);

/// One register or vector of registers of that many bytes.
template <int kBytes>
struct Raw;
template <>
struct Raw<2> {
  using type = unsigned short;
};
template <>
struct Raw<4> {
  using type = unsigned;
};
template <>
struct Raw<8> {
  using type = uint2;
};
template <>
struct Raw<16> {
  using type = uint4;
};
template <>
struct Raw<32> {
  struct type {
    uint4 first, second;
  };
};

// Through Raw: a plain copy of the struct is sometimes split into narrow accesses.
template <int N, class T>
__device__ inline Pack<T, N> load(const T* from) {
  using Word = typename Raw<sizeof(Pack<T, N>)>::type;
  const Word word = *reinterpret_cast<const Word*>(from);
  Pack<T, N> pack;
  memcpy(&pack, &word, sizeof word);
  return pack;
}
template <int N, class T>
__device__ inline void store(T* to, const Pack<T, N>& pack) {
  using Word = typename Raw<sizeof(Pack<T, N>)>::type;
  Word word;
  memcpy(&word, &pack, sizeof word);
  *reinterpret_cast<Word*>(to) = word;
}

inline bool is_aligned(const void* data, size_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}
/// Rows of `width` values can be read in packs of N: null pointers do not count.
template <int N, class T, class... Pointers>
bool fits_packs(int64_t width, const Pointers*... data) {
  return width % N == 0 && (is_aligned(data, N * sizeof(T)) && ...);
}

/// Sum over groups of `lanes` neighbours of a warp (a power of 2), the same in each of them. All lanes must call.
template <class A>
__device__ inline A lane_sum(A x, int lanes = 32) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

constexpr int kMaxWarps = 32;

/// Sum over the threads of a block (over x where a block is one warp wide, then without a barrier). Calls that follow
/// each other must take turns between two arrays of kMaxWarps slots: one barrier a call is then enough.
template <class A>
__device__ inline A block_sum(A x, A* slots) {
  x = lane_sum(x);
  const int warps = blockDim.x / 32;
  if (warps == 1) return x;
  if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = x;
  __syncthreads();
  A sum = 0;
  for (int warp = 0; warp < warps; ++warp) sum += slots[warp];
  return sum;
}

__device__ inline float exp_of(float x) {
  return expf(x);
}
__device__ inline double exp_of(double x) {
  return exp(x);
}
__device__ inline float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + expf(-x));
}
__device__ inline double sigmoid(double x) {
  return 1 / (1 + exp(-x));
}
__device__ inline float reciprocal_root(float x) {
  return 1.0f / sqrtf(x);
}
__device__ inline double reciprocal_root(double x) {
  return 1 / sqrt(x);
}

/// Throws when the launch before it failed. errors: kDevice naming the kernel
inline void check_launch(const char* kernel) {
  const cudaError_t status = cudaGetLastError();
  HANOK_REQUIRE(status == cudaSuccess, kDevice)
      << "CUDA kernel " << kernel << ": got " << cudaGetErrorString(status)
      << ", expected success; launch, or a kernel before it; run trainer doctor and look into the driver's log";
}

inline int num_multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

/// Blocks that the device holds at once, for kernels that loop over their work; no more than `most` a multiprocessor.
template <class Kernel>
int resident_blocks(Kernel* kernel, int threads, int most = 32, size_t shared_bytes = 0) {
  int per_multiprocessor = 1;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, shared_bytes);
  return num_multiprocessors() * std::clamp(per_multiprocessor, 1, most);
}

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Blocks of about 256 threads over [rows, columns]: x counts columns, y rows, and a block loops over rows from there.
struct Tiles {
  dim3 grid, block;
};
inline Tiles tiles_of(int64_t rows, int64_t columns) {
  const int64_t across = divide_up(columns, 256), width = divide_up(columns, across),
                height = std::max<int64_t>(1, 256 / width);
  const int64_t down = std::min<int64_t>(divide_up(rows, height), 65535);
  return {dim3(static_cast<unsigned>(across), static_cast<unsigned>(down)),
          dim3(static_cast<unsigned>(width), static_cast<unsigned>(height))};
}

/// f(T{}) for the element type of a call.
template <class F>
void dispatch(CudaType type, const F& f) {
  switch (type) {
    case CudaType::kF32: return f(float{});
    case CudaType::kF64: return f(double{});
    case CudaType::kBf16: return f(__nv_bfloat16{});
    case CudaType::kF16: return f(__half{});
  }
}

}  // namespace hanok::cuda
