// Arithmetic on 16-byte packs whose 16-bit values stay two to a register, where that gives the bits of f32 arithmetic:
// the product of two 16-bit values is exact in f32, so that rounding it once in 16 bits is the same; of their sum f32
// loses only what is far too small to decide the rounding.
#pragma once

#include "base/cuda/device.cuh"

namespace hanok::cuda {

template <class T>
struct PairOf;
template <>
struct PairOf<__half> {
  using type = __half2;
};
template <>
struct PairOf<__nv_bfloat16> {
  using type = __nv_bfloat162;
};
template <class T>
using Pair = typename PairOf<T>::type;

template <class T>
__device__ inline Pair<T> pair_of(const T* v) {
  Pair<T> pair;
  memcpy(&pair, v, sizeof pair);
  return pair;
}
template <class T>
__device__ inline void put_pair(T* v, Pair<T> pair) {
  memcpy(v, &pair, sizeof pair);
}
__device__ inline __half2 narrow_pair(float a, float b, __half) {
  return __floats2half2_rn(a, b);
}
__device__ inline __nv_bfloat162 narrow_pair(float a, float b, __nv_bfloat16) {
  return __floats2bfloat162_rn(a, b);
}

template <class T, int N>
constexpr bool kPairs = sizeof(T) == 2 && N % 2 == 0;

/// The compiler must take the values of a 16-byte pack apart again: kept from their last use, they would fill the
/// registers.
template <class T, int N>
__device__ inline void forget_unpacked(Pack<T, N>& pack) {
  if constexpr (kPairs<T, N> && sizeof(pack) == 16) {
    uint4 held;
    memcpy(&held, &pack, sizeof held);
    asm volatile("" : "+r"(held.x), "+r"(held.y), "+r"(held.z), "+r"(held.w));
    memcpy(&pack, &held, sizeof held);
  }
}

/// a + b, rounded.
template <class T, int N>
__device__ inline Pack<T, N> sum_of(const Pack<T, N>& a, const Pack<T, N>& b) {
  Pack<T, N> out;
  if constexpr (kPairs<T, N>) {
#pragma unroll
    for (int i = 0; i < N; i += 2) put_pair(out.v + i, __hadd2_rn(pair_of(a.v + i), pair_of(b.v + i)));
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) out.v[i] = narrow<T>(widen(a.v[i]) + widen(b.v[i]));
  }
  return out;
}

/// x * scale, rounded, times weight, rounded: RMSNorm as HF computes it.
template <class T, int N>
__device__ inline Pack<T, N> scaled(const Pack<T, N>& x, Wide<T> scale, const Pack<T, N>& weight) {
  Pack<T, N> out;
  if constexpr (kPairs<T, N>) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const Pair<T> unit = narrow_pair(widen(x.v[i]) * scale, widen(x.v[i + 1]) * scale, T{});
      put_pair(out.v + i, __hmul2_rn(unit, pair_of(weight.v + i)));
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) out.v[i] = narrow<T>(rounded<T>(widen(x.v[i]) * scale) * widen(weight.v[i]));
  }
  return out;
}

/// 1 / sqrt(x) to two units in the last place: a tenth of the instructions of the exact one.
__device__ inline float inverse_root(float x) {
  return rsqrtf(x);
}
__device__ inline double inverse_root(double x) {
  return rsqrt(x);
}

/// Sum of the squares.
template <class T, int N>
__device__ inline Wide<T> squares_of(const Pack<T, N>& x) {
  Wide<T> sum = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += widen(x.v[i]) * widen(x.v[i]);
  return sum;
}

/// A thread's sums of N columns -> memory in 16-byte stores: narrower ones would each write part of a sector.
template <int N, class A>
__device__ inline void store_sums(A* to, const A (&sums)[N]) {
  constexpr int kStep = 16 / sizeof(A);
#pragma unroll
  for (int i = 0; i < N; i += kStep) {
    Pack<A, kStep> pack;
#pragma unroll
    for (int n = 0; n < kStep; ++n) pack.v[n] = sums[i + n];
    store<kStep>(to + i, pack);
  }
}

}  // namespace hanok::cuda
