#include "base/cuda/device.cuh"
#include "model/kernels/swiglu_cuda.h"

namespace hanok {
namespace cuda {
namespace {

template <class T, int N>
__global__ void __launch_bounds__(256) forward(const T* h, T* y, int64_t rows, int64_t packs) {
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, width = packs * N;
  if (at >= packs) return;
  for (int64_t row = blockIdx.y * int64_t{blockDim.y} + threadIdx.y; row < rows;
       row += gridDim.y * int64_t{blockDim.y}) {
    const T* gate = h + row * 2 * width + at * N;
    const Pack<T, N> g = load<N>(gate), up = load<N>(gate + width);
    Pack<T, N> out;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const Wide<T> value = widen(g.v[i]);
      out.v[i] = narrow<T>(rounded<T>(value * sigmoid(value)) * widen(up.v[i]));
    }
    store<N>(y + row * width + at * N, out);
  }
}

// d silu(g) / dg = s * (1 + g * (1 - s)) with s = sigmoid(g).
template <class T, int N>
__global__ void __launch_bounds__(256) backward(const T* dy, const T* h, T* dh, int64_t rows, int64_t packs) {
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, width = packs * N;
  if (at >= packs) return;
  for (int64_t row = blockIdx.y * int64_t{blockDim.y} + threadIdx.y; row < rows;
       row += gridDim.y * int64_t{blockDim.y}) {
    const int64_t gate = row * 2 * width + at * N;
    const Pack<T, N> g = load<N>(h + gate), up = load<N>(h + gate + width), d = load<N>(dy + row * width + at * N);
    Pack<T, N> dgate, dup;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const Wide<T> value = widen(g.v[i]), slope = widen(d.v[i]), s = sigmoid(value);
      dgate.v[i] = narrow<T>(slope * widen(up.v[i]) * (s * (1 + value * (1 - s))));
      dup.v[i] = narrow<T>(slope * (value * s));
    }
    store<N>(dh + gate, dgate);
    store<N>(dh + gate + width, dup);
  }
}

template <class T, int N>
void forward_on(const SwiGluForward& a) {
  const Tiles tiles = tiles_of(a.rows, a.width / N);
  forward<T, N><<<tiles.grid, tiles.block, 0, a.call.stream>>>(
      static_cast<const T*>(a.h), static_cast<T*>(a.y), a.rows, a.width / N);
}

template <class T, int N>
void backward_on(const SwiGluBackward& a) {
  const Tiles tiles = tiles_of(a.rows, a.width / N);
  backward<T, N><<<tiles.grid, tiles.block, 0, a.call.stream>>>(
      static_cast<const T*>(a.dy), static_cast<const T*>(a.h), static_cast<T*>(a.dh), a.rows, a.width / N);
}

}  // namespace
}  // namespace cuda

void launch(const SwiGluForward& args) {
  if (args.rows == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = cuda::kPackOf<T>;
    cuda::fits_packs<N, T>(args.width, args.h, args.y) ? cuda::forward_on<T, N>(args) : cuda::forward_on<T, 1>(args);
  });
  cuda::check_launch("swiglu forward");
}

void launch(const SwiGluBackward& args) {
  if (args.rows == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = cuda::kPackOf<T>;
    cuda::fits_packs<N, T>(args.width, args.dy, args.h, args.dh) ? cuda::backward_on<T, N>(args)
                                                                 : cuda::backward_on<T, 1>(args);
  });
  cuda::check_launch("swiglu backward");
}

}  // namespace hanok
