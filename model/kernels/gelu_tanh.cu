#include "base/cuda/device.cuh"
#include "model/kernels/gelu_tanh_cuda.h"

namespace hanok {
namespace cuda {
namespace {

constexpr double kSlope = 1.5957691216057308;  // 2 sqrt(2 / pi): (1 + tanh u) / 2 = sigmoid(2 u)
constexpr double kCubic = 0.044715;

template <class A>
__device__ A value_at(A x) {
  return x * sigmoid(A(kSlope) * (x + A(kCubic) * x * x * x));
}

template <class A>
__device__ A slope_at(A x) {
  // The smaller of s = sigmoid(u) and 1 - s: as a difference from 1 it would have lost its digits.
  const A u = A(kSlope) * (x + A(kCubic) * x * x * x), small = sigmoid(u < 0 ? u : -u);
  return (u < 0 ? small : 1 - small) + x * small * (1 - small) * (A(kSlope) * (1 + 3 * A(kCubic) * x * x));
}

// The values behind the last whole pack are the last thread's.
template <class T, int N>
__global__ void __launch_bounds__(256) forward(const T* x, T* y, int64_t count) {
  const int64_t at = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) * N;
  if (at + N > count) {
    for (int64_t i = at; i < count; ++i) y[i] = narrow<T>(value_at(widen(x[i])));
    return;
  }
  const Pack<T, N> v = load<N>(x + at);
  Pack<T, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) out.v[i] = narrow<T>(value_at(widen(v.v[i])));
  store<N>(y + at, out);
}

template <class T, int N>
__global__ void __launch_bounds__(256) backward(const T* dy, const T* x, T* dx, int64_t count) {
  const int64_t at = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) * N;
  if (at + N > count) {
    for (int64_t i = at; i < count; ++i) dx[i] = narrow<T>(widen(dy[i]) * slope_at(widen(x[i])));
    return;
  }
  const Pack<T, N> v = load<N>(x + at), d = load<N>(dy + at);
  Pack<T, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) out.v[i] = narrow<T>(widen(d.v[i]) * slope_at(widen(v.v[i])));
  store<N>(dx + at, out);
}

template <class T, int N>
void forward_on(const GeluTanhForward& a) {
  forward<T, N><<<static_cast<unsigned>(divide_up(a.count, 256 * N)), 256, 0, a.call.stream>>>(
      static_cast<const T*>(a.x), static_cast<T*>(a.y), a.count);
}

template <class T, int N>
void backward_on(const GeluTanhBackward& a) {
  backward<T, N><<<static_cast<unsigned>(divide_up(a.count, 256 * N)), 256, 0, a.call.stream>>>(
      static_cast<const T*>(a.dy), static_cast<const T*>(a.x), static_cast<T*>(a.dx), a.count);
}

}  // namespace
}  // namespace cuda

void launch(const GeluTanhForward& args) {
  if (args.count == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = cuda::kPackOf<T>;
    cuda::fits_packs<N, T>(0, args.x, args.y) ? cuda::forward_on<T, N>(args) : cuda::forward_on<T, 1>(args);
  });
  cuda::check_launch("gelu_tanh forward");
}

void launch(const GeluTanhBackward& args) {
  if (args.count == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = cuda::kPackOf<T>;
    cuda::fits_packs<N, T>(0, args.dy, args.x, args.dx) ? cuda::backward_on<T, N>(args) : cuda::backward_on<T, 1>(args);
  });
  cuda::check_launch("gelu_tanh backward");
}

}  // namespace hanok
