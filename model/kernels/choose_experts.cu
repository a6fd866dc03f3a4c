#include "base/cuda/device.cuh"
#include "model/kernels/choose_experts_cuda.h"

namespace hanok {
namespace cuda {
namespace {

constexpr int kWarps = 8;

template <class A>
__device__ A lane_max(A x) {
  for (int step = 16; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(~0u, x, step);
    x = x > other ? x : other;
  }
  return x;
}

template <class A>
struct Best {
  A share;
  int64_t expert;
  __device__ bool is_before(const Best& other) const {
    return share > other.share || (share == other.share && expert < other.expert);
  }
};

/// The first expert in the order of shares that stands behind `last`; expert == experts: there is none.
template <class A>
__device__ Best<A> next_best(const A* share, int64_t experts, const Best<A>& last) {
  Best<A> best{A(-1), experts};
  for (int64_t e = threadIdx.x; e < experts; e += 32) {
    const Best<A> here{share[e], e};
    if (last.is_before(here) && here.is_before(best)) best = here;
  }
  for (int step = 16; step > 0; step /= 2) {
    const Best<A> other{__shfl_xor_sync(~0u, best.share, step), __shfl_xor_sync(~0u, best.expert, step)};
    if (other.is_before(best)) best = other;
  }
  return best;
}

// A warp a token; a lane reads again only shares that it has written itself, until the warp has met.
template <class T>
__global__ void __launch_bounds__(32 * kWarps) choose(const T* logits,
                                                      const int64_t* row,
                                                      T* weight,
                                                      int64_t* index,
                                                      Wide<T>* share,
                                                      int64_t* assigned,
                                                      int64_t tokens,
                                                      int64_t experts,
                                                      int64_t choices,
                                                      bool normalise) {
  using A = Wide<T>;
  const int64_t step = gridDim.x * int64_t{kWarps};
  const int lane = threadIdx.x;
  for (int64_t t = blockIdx.x * int64_t{kWarps} + threadIdx.y; t < tokens; t += step) {
    const T* from = logits + t * experts;
    A *shares = share + t * experts, most = -INFINITY, sum = 0;
    int64_t* chosen = index + t * choices;
    for (int64_t e = lane; e < experts; e += 32) {
      const A logit = widen(from[e]);
      most = logit > most ? logit : most;
    }
    most = lane_max(most);
    for (int64_t e = lane; e < experts; e += 32) {
      shares[e] = exp_of(widen(from[e]) - most);
      sum += shares[e];
    }
    sum = lane_sum(sum);
    for (int64_t e = lane; e < experts; e += 32) shares[e] /= sum;
    Best<A> last{A(2), -1};
    A total = 0;
    for (int64_t k = 0; k < choices; ++k) {
      const Best<A> best = next_best(shares, experts, last);
      last = best.expert < experts ? best : Best<A>{sum, k};  // none: the sum is no number
      total += last.share;
      if (lane == 0) chosen[k] = last.expert;
    }
    __syncwarp();
    const int64_t own_row = row[t];
    for (int64_t k = lane; k < choices; k += 32) {
      const int64_t e = chosen[k];
      weight[t * choices + k] = narrow<T>(normalise ? shares[e] / total : shares[e]);
      if (assigned && own_row >= 0)
        atomicAdd(reinterpret_cast<unsigned long long*>(assigned + own_row * experts + e), 1ULL);
    }
    __syncwarp();
  }
}

// With b the gradient added to shares: ds_e = b_e, of chosen experts + d_k, or (d_k - sum_j w_j d_j) / sum_j s_j for
// weights w = s / sum s; and dlogit_e = s_e (ds_e - sum_j s_j ds_j).
template <class T>
__global__ void __launch_bounds__(32 * kWarps) choose_backward(const Wide<T>* share,
                                                               const int64_t* index,
                                                               const int64_t* row,
                                                               const T* dweight,
                                                               const Wide<T>* added,
                                                               T* dlogits,
                                                               int64_t tokens,
                                                               int64_t experts,
                                                               int64_t choices,
                                                               bool normalise) {
  using A = Wide<T>;
  const int64_t step = gridDim.x * int64_t{kWarps};
  const int lane = threadIdx.x;
  for (int64_t t = blockIdx.x * int64_t{kWarps} + threadIdx.y; t < tokens; t += step) {
    const A* shares = share + t * experts;
    const int64_t* chosen = index + t * choices;
    const T* d = dweight + t * choices;
    T* out = dlogits + t * experts;
    const A* b = added && row[t] >= 0 ? added + row[t] * experts : nullptr;
    A total = 0, weighted = 0, inner = 0;
    for (int64_t k = lane; k < choices; k += 32) {
      const A s = shares[chosen[k]];
      total += s;
      weighted += s * widen(d[k]);
    }
    total = lane_sum(total);
    weighted = lane_sum(weighted);
    const A mean = normalise ? weighted / total : A(0), scale = normalise ? A(1) / total : A(1);
    for (int64_t k = lane; k < choices; k += 32) inner += shares[chosen[k]] * (widen(d[k]) - mean) * scale;
    if (b)
      for (int64_t e = lane; e < experts; e += 32) inner += shares[e] * b[e];
    inner = lane_sum(inner);
    for (int64_t e = lane; e < experts; e += 32) out[e] = narrow<T>(shares[e] * ((b ? b[e] : A(0)) - inner));
    __syncwarp();
    for (int64_t k = lane; k < choices; k += 32) {
      const int64_t e = chosen[k];
      out[e] = narrow<T>(shares[e] * ((b ? b[e] : A(0)) + (widen(d[k]) - mean) * scale - inner));
    }
    __syncwarp();
  }
}

unsigned blocks_for(int64_t tokens) {
  return static_cast<unsigned>(std::min<int64_t>(divide_up(tokens, kWarps), 1 << 16));
}

}  // namespace
}  // namespace cuda

void launch(const ChooseExperts& a) {
  if (a.tokens == 0) return;
  cuda::dispatch(a.call.type, [&](auto tag) {
    using T = decltype(tag);
    cuda::choose<T>
        <<<cuda::blocks_for(a.tokens), dim3(32, cuda::kWarps), 0, a.call.stream>>>(static_cast<const T*>(a.logits),
                                                                                   a.row,
                                                                                   static_cast<T*>(a.weight),
                                                                                   a.index,
                                                                                   static_cast<cuda::Wide<T>*>(a.share),
                                                                                   a.assigned,
                                                                                   a.tokens,
                                                                                   a.experts,
                                                                                   a.choices,
                                                                                   a.normalise);
  });
  cuda::check_launch("choose_experts");
}

void launch(const ChooseExpertsBackward& a) {
  if (a.tokens == 0) return;
  cuda::dispatch(a.call.type, [&](auto tag) {
    using T = decltype(tag);
    cuda::choose_backward<T><<<cuda::blocks_for(a.tokens), dim3(32, cuda::kWarps), 0, a.call.stream>>>(
        static_cast<const cuda::Wide<T>*>(a.share),
        a.index,
        a.row,
        static_cast<const T*>(a.dweight),
        static_cast<const cuda::Wide<T>*>(a.added),
        static_cast<T*>(a.dlogits),
        a.tokens,
        a.experts,
        a.choices,
        a.normalise);
  });
  cuda::check_launch("choose_experts: backward");
}

}  // namespace hanok
