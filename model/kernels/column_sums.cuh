// The second stage of sums over rows: the first left one row of partial sums for every block that walked over rows.
#pragma once

#include "base/cuda/device.cuh"

namespace hanok::cuda {

/// out_C = sum over rows of partial_RC, added in an order that only R and C decide. A block of 32 warps takes kColumns
/// columns: a sector of each row where there are few of them, so that enough blocks share the work.
template <class T, int kColumns>
__global__ void __launch_bounds__(1024) column_sums(const Wide<T>* partial, T* out, int64_t rows, int64_t columns) {
  constexpr int kRows = 1024 / kColumns;
  __shared__ Wide<T> slots[32][33];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first = blockIdx.x * int64_t{kColumns}, column = first + threadIdx.x % kColumns;
  Wide<T> sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (int64_t row = threadIdx.x / kColumns; row < rows; row += kRows) sum += partial[row * columns + column];
  }
  for (int step = kColumns; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane < kColumns) slots[warp][lane] = sum;
  __syncthreads();
  if (warp >= kColumns || first + warp >= columns) return;
  sum = lane_sum(slots[lane][warp]);
  if (lane == 0) out[first + warp] = narrow<T>(sum);
}

template <class T>
void sum_columns(const void* partial, void* out, int64_t rows, int64_t columns, cudaStream_t stream) {
  const bool few = columns <= 2048;
  auto* kernel = few ? column_sums<T, 8> : column_sums<T, 32>;
  kernel<<<static_cast<unsigned>(divide_up(columns, few ? 8 : 32)), 1024, 0, stream>>>(
      static_cast<const Wide<T>*>(partial), static_cast<T*>(out), rows, columns);
}

}  // namespace hanok::cuda
