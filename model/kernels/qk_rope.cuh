// What both ways of qk_rope share: where a thread stands among the heads, and turning by an angle.
#pragma once

#include <type_traits>

#include "model/kernels/packed.cuh"

namespace hanok::cuda {

// A head belongs to `lanes` neighbours of a warp (a power of 2 when they must add up). Each of them takes up to kItems
// packs j of the head's first half, and the packs of the second half that those turn with; and it does so for several
// heads of one row, `groups` heads apart, which share the row's angles.
struct Layout {
  int64_t rows;
  int heads, kv_heads, width;  // N, K, H
  int packs;                   // of half a head
  int lanes, groups;
  __host__ __device__ int turned() const { return heads + kv_heads; }
  __host__ __device__ int all() const { return heads + 2 * kv_heads; }
  __host__ __device__ unsigned slots() const { return static_cast<unsigned>(rows) * groups * lanes; }
};

struct Place {
  int64_t row;
  int head, lane;
  bool inside;
};

// 32 bits: a division of 64 costs more than the rest of the index arithmetic together.
__device__ inline Place place_of(unsigned slot, const Layout& layout) {
  const unsigned unit = slot / layout.lanes, row = unit / layout.groups;
  return {row,
          static_cast<int>(unit - row * layout.groups),
          static_cast<int>(slot - unit * layout.lanes),
          row < layout.rows};
}

// a, b <- a cos - b sin, b cos + a sin.
template <class T, class C, int N>
__device__ inline void turn(Pack<T, N>& a, Pack<T, N>& b, const Pack<C, N>& cos, const Pack<C, N>& sin) {
  if constexpr (std::is_same_v<T, C> && kPairs<T, N>) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const Pair<T> p = pair_of(a.v + i), q = pair_of(b.v + i), c = pair_of(cos.v + i), s = pair_of(sin.v + i);
      put_pair(a.v + i, __hsub2_rn(__hmul2_rn(p, c), __hmul2_rn(q, s)));
      put_pair(b.v + i, __hadd2_rn(__hmul2_rn(q, c), __hmul2_rn(p, s)));
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const Wide<T> p = widen(a.v[i]), q = widen(b.v[i]), c = widen(cos.v[i]), s = widen(sin.v[i]);
      a.v[i] = narrow<T>(rounded<C>(p * c) - rounded<C>(q * s));
      b.v[i] = narrow<T>(rounded<C>(q * c) + rounded<C>(p * s));
    }
  }
}

// By the angles the other way, without rounding: the gradient.
template <class T, class C, int N>
__device__ inline void turn_back(const Pack<T, N>& a,
                                 const Pack<T, N>& b,
                                 const Pack<C, N>& cos,
                                 const Pack<C, N>& sin,
                                 Wide<T> (&out_a)[N],
                                 Wide<T> (&out_b)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const Wide<T> p = widen(a.v[i]), q = widen(b.v[i]), c = widen(cos.v[i]), s = widen(sin.v[i]);
    out_a[i] = p * c + q * s;
    out_b[i] = q * c - p * s;
  }
}

}  // namespace hanok::cuda
