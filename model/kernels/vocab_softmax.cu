#include "base/cuda/device.cuh"
#include "model/kernels/vocab_softmax_cuda.h"

namespace hanok {
namespace cuda {
namespace {

constexpr int kThreads = 256, kPacksAtOnce = 4;

// exp of what is <= 0 up to rounding. Logits of 16 bits carry errors far above the two units of this.
template <class T>
__device__ inline Wide<T> exp_below(Wide<T> x) {
  if constexpr (sizeof(T) == 2) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
    return y;
  } else {
    return exp_of(x);
  }
}

// Maximum and sum of exp(z - max) of the values seen so far.
template <class A>
struct Running {
  A max = -INFINITY, sum = 0;
};

// -inf - -inf is no number: equal maxima leave a sum as it is.
template <class A>
__device__ inline Running<A> joined(const Running<A>& a, const Running<A>& b) {
  const A max = a.max > b.max ? a.max : b.max;
  return {max,
          a.sum * (a.max == max ? A(1) : exp_of(a.max - max)) + b.sum * (b.max == max ? A(1) : exp_of(b.max - max))};
}

// One look for a new maximum for all of them: the old sum is rescaled once.
template <class T, int N, int kPacks>
__device__ inline void take(Running<Wide<T>>& running, const Pack<T, N> (&z)[kPacks]) {
  using A = Wide<T>;
  A max = running.max, sums[kPacks] = {};
#pragma unroll
  for (int p = 0; p < kPacks; ++p)
#pragma unroll
    for (int i = 0; i < N; ++i) max = widen(z[p].v[i]) > max ? widen(z[p].v[i]) : max;
#pragma unroll
  for (int p = 0; p < kPacks; ++p)
#pragma unroll
    for (int i = 0; i < N; ++i) sums[p] += exp_below<T>(widen(z[p].v[i]) - max);
  A sum = running.max == max ? running.sum : running.sum * exp_of(running.max - max);
#pragma unroll
  for (int p = 0; p < kPacks; ++p) sum += sums[p];
  running = {max, sum};
}

template <class T>
__device__ inline void take_one(Running<Wide<T>>& running, T z) {
  const Pack<T, 1> one[1] = {{{z}}};
  take(running, one);
}

/// Values before the first one that lies on 16 bytes.
template <class T>
__device__ inline int64_t head_of(const T* row, int64_t columns) {
  const auto past = reinterpret_cast<uintptr_t>(row) % 16;
  const int64_t head = past ? (16 - past) / sizeof(T) : 0;
  return head < columns ? head : columns;
}

// A block a row. Rows need not be aligned: columns before and behind the whole packs are taken one by one.
template <class T>
__global__ void __launch_bounds__(kThreads)
    row_stats(const T* z, const int64_t* target, Wide<T>* max, Wide<T>* sum, Wide<T>* target_logit, int64_t columns) {
  using A = Wide<T>;
  constexpr int N = kPackOf<T>;
  __shared__ Running<A> warps[kThreads / 32];
  const int64_t row = blockIdx.x;
  const T* logits = z + row * columns;
  const int64_t head = head_of(logits, columns), packs = (columns - head) / N, tail = head + packs * N;
  Running<A> running;
  for (int64_t pack = threadIdx.x; pack < packs; pack += kPacksAtOnce * kThreads) {
    Pack<T, N> v[kPacksAtOnce];
#pragma unroll
    for (int p = 0; p < kPacksAtOnce; ++p) {
      const int64_t at = pack + p * kThreads;
      if (at < packs) {
        v[p] = load<N>(logits + head + at * N);
      } else {  // taken one by one, the last packs would each wait for memory
#pragma unroll
        for (int i = 0; i < N; ++i) v[p].v[i] = narrow<T>(-INFINITY);
      }
    }
    take(running, v);
  }
  for (int64_t i = threadIdx.x; i < head; i += kThreads) take_one(running, logits[i]);
  for (int64_t i = tail + threadIdx.x; i < columns; i += kThreads) take_one(running, logits[i]);
  for (int step = 16; step > 0; step /= 2)
    running = joined(running, {__shfl_xor_sync(~0u, running.max, step), __shfl_xor_sync(~0u, running.sum, step)});
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = running;
  __syncthreads();
  if (threadIdx.x > 0) return;
  running = {};
  for (const Running<A>& other : warps) running = joined(running, other);
  max[row] = running.max;
  sum[row] = running.sum;
  const int64_t here = target[row];
  target_logit[row] = here >= 0 && here < columns ? widen(logits[here]) : A(0);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    turn_into_gradient(T* z, const int64_t* target, const Wide<T>* log_sum, const Wide<T>* g, int64_t columns) {
  using A = Wide<T>;
  constexpr int N = kPackOf<T>;
  const int64_t row = blockIdx.x, here = target[row];
  T* logits = z + row * columns;
  const int64_t head = head_of(logits, columns), packs = (columns - head) / N, tail = head + packs * N;
  const A shift = log_sum[row], scale = g[row];
  const auto gradient = [&](T logit, int64_t column) {
    return narrow<T>(scale * (exp_below<T>(widen(logit) - shift) - (column == here ? A(1) : A(0))));
  };
#pragma unroll 2
  for (int64_t pack = threadIdx.x; pack < packs; pack += kThreads) {
    const int64_t column = head + pack * N;
    Pack<T, N> v = load<N>(logits + column);
    const int at = here >= column && here < column + N ? static_cast<int>(here - column) : -1;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      A value = scale * exp_below<T>(widen(v.v[i]) - shift);
      if (i == at) value -= scale;
      v.v[i] = narrow<T>(value);
    }
    store<N>(logits + column, v);
  }
  for (int64_t i = threadIdx.x; i < head; i += kThreads) logits[i] = gradient(logits[i], i);
  for (int64_t i = tail + threadIdx.x; i < columns; i += kThreads) logits[i] = gradient(logits[i], i);
}

}  // namespace
}  // namespace cuda

void launch(const VocabRowStats& a) {
  if (a.rows == 0 || a.columns == 0) return;
  cuda::dispatch(a.call.type, [&](auto tag) {
    using T = decltype(tag);
    using A = cuda::Wide<T>;
    cuda::row_stats<T>
        <<<static_cast<unsigned>(a.rows), cuda::kThreads, 0, a.call.stream>>>(static_cast<const T*>(a.z),
                                                                              a.target,
                                                                              static_cast<A*>(a.max),
                                                                              static_cast<A*>(a.sum),
                                                                              static_cast<A*>(a.target_logit),
                                                                              a.columns);
  });
  cuda::check_launch("vocab_softmax statistics");
}

void launch(const VocabGradient& a) {
  if (a.rows == 0 || a.columns == 0) return;
  cuda::dispatch(a.call.type, [&](auto tag) {
    using T = decltype(tag);
    using A = cuda::Wide<T>;
    cuda::turn_into_gradient<T><<<static_cast<unsigned>(a.rows), cuda::kThreads, 0, a.call.stream>>>(
        static_cast<T*>(a.z), a.target, static_cast<const A*>(a.log_sum), static_cast<const A*>(a.g), a.columns);
  });
  cuda::check_launch("vocab_softmax gradient");
}

}  // namespace hanok
