// Matrix products that stay inside one thread and its cache: a BLAS call costs more than most products of packed
// attention (tens of rows and columns), and its results may depend on where in memory the operands lie. These do not.
#pragma once

#include "model/kernels/simd.h"

namespace hanok {

/// C[M, N] (+)= A[M, K] B[K, N]. A is read at a[m * a_row + k * a_col]; B and C have unit columns. N must be a multiple
/// of kGemmColumns, padded by the caller. Sums run over k in order.
constexpr int64_t kGemmColumns = 16;

struct SmallGemm {
  template <class W, class A>
  HANOK_SIMD_BODY void operator()(W,
                                  int64_t m,
                                  int64_t n,
                                  int64_t k,
                                  const A* a,
                                  int64_t a_row,
                                  int64_t a_col,
                                  const A* b,
                                  int64_t b_row,
                                  A* c,
                                  int64_t c_row,
                                  bool add) const {
    constexpr int kLanes = W::bytes / static_cast<int>(sizeof(A));
    int64_t column = 0;
    for (; column + 2 * kLanes <= n; column += 2 * kLanes)
      rows<W, 2>(m, k, a, a_row, a_col, b + column, b_row, c + column, c_row, add);
    for (; column < n; column += kLanes) rows<W, 1>(m, k, a, a_row, a_col, b + column, b_row, c + column, c_row, add);
  }

 private:
  template <class W, int kVectors, class A>
  static HANOK_SIMD_BODY void rows(int64_t m,
                                   int64_t k,
                                   const A* a,
                                   int64_t a_row,
                                   int64_t a_col,
                                   const A* b,
                                   int64_t b_row,
                                   A* c,
                                   int64_t c_row,
                                   bool add) {
    int64_t row = 0;
    for (; row + 6 <= m; row += 6)
      tile<W, 6, kVectors>(k, a + row * a_row, a_row, a_col, b, b_row, c + row * c_row, c_row, add);
    for (; row + 2 <= m; row += 2)
      tile<W, 2, kVectors>(k, a + row * a_row, a_row, a_col, b, b_row, c + row * c_row, c_row, add);
    if (row < m) tile<W, 1, kVectors>(k, a + row * a_row, a_row, a_col, b, b_row, c + row * c_row, c_row, add);
  }

  template <class W, int kRows, int kVectors, class A>
  static HANOK_SIMD_BODY void tile(
      int64_t k, const A* a, int64_t a_row, int64_t a_col, const A* b, int64_t b_row, A* c, int64_t c_row, bool add) {
    typedef A Vector __attribute__((vector_size(W::bytes), aligned(sizeof(A)), may_alias));
    constexpr int kLanes = W::bytes / static_cast<int>(sizeof(A));
    Vector sum[kRows][kVectors];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v)
        sum[r][v] = add ? *reinterpret_cast<const Vector*>(c + r * c_row + v * kLanes) : Vector{};
    for (int64_t i = 0; i < k; ++i, a += a_col, b += b_row) {
      Vector column[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) column[v] = *reinterpret_cast<const Vector*>(b + v * kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[r][v] += a[r * a_row] * column[v];
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) *reinterpret_cast<Vector*>(c + r * c_row + v * kLanes) = sum[r][v];
  }
};

}  // namespace hanok
