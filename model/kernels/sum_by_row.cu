#include "base/cuda/device.cuh"
#include "model/kernels/sum_by_row_cuda.h"

namespace hanok {
namespace cuda {
namespace {

constexpr int kAcross = 32, kDown = 8;

// Block (x, i) takes 32 packs of columns of the key at sorted place i, if that is the key's first one. Its eight rows
// of threads take every eighth use; their sums are added in order. A token that fills a picture's place is used
// thousands of times, most others once or twice.
template <class T, int N>
__global__ void __launch_bounds__(kAcross* kDown) sum_by_row(const int64_t* key,
                                                             const int64_t* use,
                                                             const Wide<T>* weight,
                                                             const T* dy,
                                                             T* out,
                                                             int64_t uses,
                                                             int64_t taps,
                                                             int64_t rows,
                                                             int64_t packs,
                                                             int64_t first) {
  using A = Wide<T>;
  __shared__ A slots[kDown][kAcross][N];
  const int64_t begin = blockIdx.x, own = key[begin], row = own - first, width = packs * N;
  if (row < 0 || row >= rows || (begin > 0 && key[begin - 1] == own)) return;
  const int64_t at = blockIdx.y * int64_t{kAcross} + threadIdx.x;
  A sum[N] = {};
  if (at < packs) {
    for (int64_t i = begin + threadIdx.y; i < uses && key[i] == own; i += kDown) {
      const int64_t which = use[i];
      const A share = weight ? weight[which] : A(1);
      const Pack<T, N> v = load<N>(dy + which / taps * width + at * N);
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] += share * widen(v.v[n]);
    }
  }
#pragma unroll
  for (int n = 0; n < N; ++n) slots[threadIdx.y][threadIdx.x][n] = sum[n];
  __syncthreads();
  if (threadIdx.y > 0 || at >= packs) return;
  for (int y = 1; y < kDown; ++y)
    for (int n = 0; n < N; ++n) sum[n] += slots[y][threadIdx.x][n];
  Pack<T, N> total;
#pragma unroll
  for (int n = 0; n < N; ++n) total.v[n] = narrow<T>(sum[n]);
  store<N>(out + row * width + at * N, total);
}

template <class T, int N>
void sum_on(const SumByRow& a) {
  const int64_t packs = a.width / N;
  const dim3 grid(static_cast<unsigned>(a.uses), static_cast<unsigned>(divide_up(packs, kAcross)));
  sum_by_row<T, N><<<grid, dim3(kAcross, kDown), 0, a.call.stream>>>(a.key,
                                                                     a.use,
                                                                     static_cast<const Wide<T>*>(a.weight),
                                                                     static_cast<const T*>(a.dy),
                                                                     static_cast<T*>(a.out),
                                                                     a.uses,
                                                                     a.taps,
                                                                     a.rows,
                                                                     packs,
                                                                     a.first);
}

}  // namespace
}  // namespace cuda

void launch(const SumByRow& args) {
  if (args.uses == 0 || args.width == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = cuda::kPackOf<T>;
    cuda::fits_packs<N, T>(args.width, args.dy, args.out) ? cuda::sum_on<T, N>(args) : cuda::sum_on<T, 1>(args);
  });
  cuda::check_launch("sum_by_row");
}

}  // namespace hanok
