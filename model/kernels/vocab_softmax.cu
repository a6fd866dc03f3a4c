#include "base/cuda/device.cuh"
#include "model/kernels/vocab_softmax_cuda.h"

namespace hanok {
namespace cuda {
namespace {

constexpr int kThreads = 256, kPacksAtOnce = 4;

// exp(z - shift) of what is <= shift up to rounding. Logits of 16 bits carry errors far above those of the fast way.
template <class T>
struct ExpBelow {
  Wide<T> shift;
  __device__ explicit ExpBelow(Wide<T> shift) : shift(sizeof(T) == 2 ? shift * Wide<T>(1.4426950408889634) : shift) {}
  __device__ Wide<T> operator()(Wide<T> z) const {
    if constexpr (sizeof(T) == 2) {
      float y;
      asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(fmaf(z, 1.4426950408889634f, -shift)));
      return y;
    } else {
      return exp_of(z - shift);
    }
  }
};

__device__ inline float larger(float a, float b) {
  return fmaxf(a, b);
}
__device__ inline double larger(double a, double b) {
  return fmax(a, b);
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
  A largest[kPacks], sums[kPacks] = {}, max = running.max;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    largest[p] = widen(z[p].v[0]);
#pragma unroll
    for (int i = 1; i < N; ++i) largest[p] = larger(largest[p], widen(z[p].v[i]));
  }
#pragma unroll
  for (int p = 0; p < kPacks; ++p) max = larger(max, largest[p]);
  const ExpBelow<T> exp_below(max);
#pragma unroll
  for (int p = 0; p < kPacks; ++p)
#pragma unroll
    for (int i = 0; i < N; ++i) sums[p] += exp_below(widen(z[p].v[i]));
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

/// A row from its first value that lies on 16 bytes on, in packs. Columns before and behind are taken one by one.
template <class T>
struct Row {
  const T* logits;
  int64_t head, packs, tail;
  __device__ Row(const T* row, int64_t columns) : logits(row), head(head_of(row, columns)) {
    packs = (columns - head) / kPackOf<T>;
    tail = head + packs * kPackOf<T>;
  }
  // The thread's packs of one turn; with `filler` behind the end.
  __device__ void load_turn(Pack<T, kPackOf<T>> (&v)[kPacksAtOnce], int64_t base, T filler) const {
#pragma unroll
    for (int p = 0; p < kPacksAtOnce; ++p) {
      const int64_t pack = base + p * kThreads;
      if (pack < packs) {
        v[p] = load<kPackOf<T>>(logits + head + pack * kPackOf<T>);
      } else {
        for (int i = 0; i < kPackOf<T>; ++i) v[p].v[i] = filler;
      }
    }
  }
};

// What the threads of a block have seen, together in thread 0.
template <class A>
__device__ inline Running<A> block_joined(Running<A> running, Running<A> (&warps)[kThreads / 32]) {
  A max = running.max;
  for (int step = 16; step > 0; step /= 2) max = larger(max, __shfl_xor_sync(~0u, max, step));
  const A sum = lane_sum(running.max == max ? running.sum : running.sum * exp_of(running.max - max));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = {max, sum};
  __syncthreads();
  if (threadIdx.x >= 32) return {};
  running = warps[threadIdx.x % (kThreads / 32)];
  for (int step = kThreads / 64; step > 0; step /= 2)
    running = joined(running, {__shfl_xor_sync(~0u, running.max, step), __shfl_xor_sync(~0u, running.sum, step)});
  return running;
}

// A block a row. The next turn's packs are loaded before this one's are worked on, and what thread 0 needs in the end
// comes first: the block would wait for it alone.
template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) < 8 ? 4 : 2) update_stats(const T* z,
                                                                                const int64_t* target,
                                                                                Wide<T>* max,
                                                                                Wide<T>* sum,
                                                                                Wide<T>* target_logit,
                                                                                int64_t columns,
                                                                                int64_t first) {
  using A = Wide<T>;
  __shared__ Running<A> warps[kThreads / 32];
  const int64_t index = blockIdx.x;
  const Row<T> row(z + index * columns, columns);
  constexpr int kTurn = kPacksAtOnce * kThreads;
  const T none = narrow<T>(-INFINITY);
  Pack<T, kPackOf<T>> v[kPacksAtOnce], next[kPacksAtOnce];
  row.load_turn(next, threadIdx.x, none);
  Running<A> before, running;
  int64_t here = -1;
  A logit = 0;
  if (threadIdx.x == 0) {
    before = {max[index], sum[index]};
    here = target[index] - first;
    if (here >= 0 && here < columns) logit = widen(row.logits[here]);
  }
  for (int64_t base = threadIdx.x; base < row.packs; base += kTurn) {
#pragma unroll
    for (int p = 0; p < kPacksAtOnce; ++p) v[p] = next[p];
    if (base + kTurn < row.packs) row.load_turn(next, base + kTurn, none);
    take(running, v);
  }
  for (int64_t i = threadIdx.x; i < row.head; i += kThreads) take_one(running, row.logits[i]);
  for (int64_t i = row.tail + threadIdx.x; i < columns; i += kThreads) take_one(running, row.logits[i]);
  running = block_joined(running, warps);
  if (threadIdx.x > 0) return;
  running = joined(before, running);
  max[index] = running.max;
  sum[index] = running.sum;
  if (here >= 0 && here < columns) target_logit[index] = logit;
}

// Several packs are loaded before the first is stored: behind a store to the same row the compiler loads nothing early.
template <class T>
__global__ void __launch_bounds__(kThreads) turn_into_gradient(
    T* z, const int64_t* target, const Wide<T>* log_sum, const Wide<T>* g, int64_t columns, int64_t first) {
  using A = Wide<T>;
  constexpr int N = kPackOf<T>;
  T* logits = z + blockIdx.x * columns;
  const Row<T> row(logits, columns);
  const int64_t here = target[blockIdx.x] - first;
  const A scale = g[blockIdx.x];
  const ExpBelow<T> exp_below(log_sum[blockIdx.x]);
  for (int64_t base = threadIdx.x; base < row.packs; base += kPacksAtOnce * kThreads) {
    Pack<T, N> v[kPacksAtOnce];
    row.load_turn(v, base, narrow<T>(0));
#pragma unroll
    for (int p = 0; p < kPacksAtOnce; ++p) {
      const int64_t pack = base + p * kThreads, column = row.head + pack * N;
      if (pack >= row.packs) continue;
      const int at = here >= column && here < column + N ? static_cast<int>(here - column) : -1;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        A value = scale * exp_below(widen(v[p].v[i]));
        if (i == at) value -= scale;
        v[p].v[i] = narrow<T>(value);
      }
      store<N>(logits + column, v[p]);
    }
  }
  const auto turn_one = [&](int64_t i) {
    logits[i] = narrow<T>(scale * (exp_below(widen(logits[i])) - (i == here ? A(1) : A(0))));
  };
  for (int64_t i = threadIdx.x; i < row.head; i += kThreads) turn_one(i);
  for (int64_t i = row.tail + threadIdx.x; i < columns; i += kThreads) turn_one(i);
}

}  // namespace
}  // namespace cuda

void launch(const VocabStatsUpdate& a) {
  if (a.rows == 0 || a.columns == 0) return;
  cuda::dispatch(a.call.type, [&](auto tag) {
    using T = decltype(tag);
    using A = cuda::Wide<T>;
    cuda::update_stats<T>
        <<<static_cast<unsigned>(a.rows), cuda::kThreads, 0, a.call.stream>>>(static_cast<const T*>(a.z),
                                                                              a.target,
                                                                              static_cast<A*>(a.max),
                                                                              static_cast<A*>(a.sum),
                                                                              static_cast<A*>(a.target_logit),
                                                                              a.columns,
                                                                              a.first);
  });
  cuda::check_launch("vocab_softmax statistics");
}

void launch(const VocabGradient& a) {
  if (a.rows == 0 || a.columns == 0) return;
  cuda::dispatch(a.call.type, [&](auto tag) {
    using T = decltype(tag);
    using A = cuda::Wide<T>;
    cuda::turn_into_gradient<T>
        <<<static_cast<unsigned>(a.rows), cuda::kThreads, 0, a.call.stream>>>(static_cast<T*>(a.z),
                                                                              a.target,
                                                                              static_cast<const A*>(a.log_sum),
                                                                              static_cast<const A*>(a.g),
                                                                              a.columns,
                                                                              a.first);
  });
  cuda::check_launch("vocab_softmax gradient");
}

}  // namespace hanok
