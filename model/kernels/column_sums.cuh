// The second stage of sums over rows: the first left one row of partial sums for every block that walked over rows.
#pragma once

#include "base/cuda/device.cuh"

namespace hanok::cuda {

constexpr int kColumnSumRows = 16;

/// out_C = sum over rows of partial_RC, added in an order that only R decides.
template <class T>
__global__ void __launch_bounds__(32 * kColumnSumRows)
    column_sums(const Wide<T>* partial, T* out, int64_t rows, int64_t columns) {
  __shared__ Wide<T> slots[kColumnSumRows][33];
  const int64_t column = blockIdx.x * int64_t{32} + threadIdx.x;
  Wide<T> sum = 0;
  if (column < columns) {
#pragma unroll 4
    for (int64_t row = threadIdx.y; row < rows; row += kColumnSumRows) sum += partial[row * columns + column];
  }
  slots[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= columns) return;
  for (int y = 1; y < kColumnSumRows; ++y) sum += slots[y][threadIdx.x];
  out[column] = narrow<T>(sum);
}

template <class T>
void sum_columns(const void* partial, void* out, int64_t rows, int64_t columns, cudaStream_t stream) {
  column_sums<T><<<static_cast<unsigned>(divide_up(columns, 32)), dim3(32, kColumnSumRows), 0, stream>>>(
      static_cast<const Wide<T>*>(partial), static_cast<T*>(out), rows, columns);
}

}  // namespace hanok::cuda
