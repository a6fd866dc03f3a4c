#include "base/cuda/device.cuh"
#include "model/kernels/parcels_cuda.h"

namespace hanok {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// A thread a token; blockIdx.y: the rank.
__global__ void __launch_bounds__(kThreads) count_parcels(CountParcels a) {
  __shared__ int64_t slots[2][kMaxWarps];
  const int64_t rank = blockIdx.y, step = gridDim.x * int64_t{kThreads};
  int64_t parcels = 0, copies = 0;
  for (int64_t t = blockIdx.x * int64_t{kThreads} + threadIdx.x; t < a.tokens; t += step) {
    int64_t here = 0;
    if (a.row[t] >= 0)
      for (int64_t k = 0; k < a.choices; ++k) {
        const int64_t expert = a.index[t * a.choices + k] - rank * a.own;
        here += expert >= 0 && expert < a.own;
      }
    a.rank[t * a.ranks + rank] = here > 0 ? rank : -1;
    parcels += here > 0;
    copies += here;
  }
  parcels = block_sum(parcels, slots[0]);
  copies = block_sum(copies, slots[1]);
  if (threadIdx.x > 0) return;
  const auto add = [&](int64_t i, int64_t x) {
    atomicAdd(reinterpret_cast<unsigned long long*>(a.counts + rank * 2 + i), static_cast<unsigned long long>(x));
  };
  add(0, parcels);
  add(1, copies);
}

// A thread a column of notes.
template <class T>
__global__ void __launch_bounds__(kThreads) write_notes(const T* weight, T* parcels, WriteNotes a) {
  const int64_t notes = a.columns - a.width, step = gridDim.x * int64_t{kThreads};
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < a.num_parcels * notes; i += step) {
    const int64_t m = i / notes, column = i % notes, part = column / a.choices, k = column % a.choices;
    const int64_t t = a.slot[m] / a.ranks, rank = a.slot[m] % a.ranks;
    Wide<T> note = 0;
    if (part < 3) {
      const int64_t expert = a.index[t * a.choices + k] - rank * a.own;
      if (expert >= 0 && expert < a.own) {
        if (part == 0) note = widen(weight[t * a.choices + k]);
        if (part == 1) note = static_cast<Wide<T>>((expert + 1) % 256);
        if (part == 2) note = static_cast<Wide<T>>((expert + 1) / 256);
      }
    }
    parcels[m * a.columns + a.width + column] = narrow<T>(note);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) collect_notes(const T* dparcels, T* dweight, CollectNotes a) {
  const int64_t step = gridDim.x * int64_t{kThreads};
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < a.tokens * a.choices; i += step) {
    const int64_t t = i / a.choices, k = i % a.choices, place = a.place[t * a.ranks + a.index[i] / a.own];
    dweight[i] = place < 0 ? narrow<T>(0) : dparcels[place * a.columns + a.width + k];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) read_experts(const T* parcels, ReadExperts a) {
  const int64_t step = gridDim.x * int64_t{kThreads};
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < a.num_parcels * a.choices; i += step) {
    const T* digits = parcels + i / a.choices * a.columns + a.width + a.choices + i % a.choices;
    a.index[i] = static_cast<int64_t>(widen(digits[0])) + 256 * static_cast<int64_t>(widen(digits[a.choices])) - 1;
  }
}

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>(std::clamp<int64_t>(divide_up(threads, kThreads), 1, 1 << 16));
}

}  // namespace
}  // namespace cuda

void launch(const CountParcels& a) {
  if (a.tokens == 0) return;
  const dim3 grid(cuda::blocks_for(a.tokens), static_cast<unsigned>(a.ranks));
  cuda::count_parcels<<<grid, cuda::kThreads, 0, a.stream>>>(a);
  cuda::check_launch("order_parcels");
}

void launch(const WriteNotes& a) {
  const int64_t notes = a.num_parcels * (a.columns - a.width);
  if (notes == 0) return;
  cuda::dispatch(a.call.type, [&](auto tag) {
    using T = decltype(tag);
    cuda::write_notes<T><<<cuda::blocks_for(notes), cuda::kThreads, 0, a.call.stream>>>(
        static_cast<const T*>(a.weight), static_cast<T*>(a.parcels), a);
  });
  cuda::check_launch("pack_parcels");
}

void launch(const CollectNotes& a) {
  if (a.tokens == 0) return;
  cuda::dispatch(a.call.type, [&](auto tag) {
    using T = decltype(tag);
    cuda::collect_notes<T><<<cuda::blocks_for(a.tokens * a.choices), cuda::kThreads, 0, a.call.stream>>>(
        static_cast<const T*>(a.dparcels), static_cast<T*>(a.dweight), a);
  });
  cuda::check_launch("pack_parcels: weights");
}

void launch(const ReadExperts& a) {
  if (a.num_parcels == 0) return;
  cuda::dispatch(a.call.type, [&](auto tag) {
    using T = decltype(tag);
    cuda::read_experts<T><<<cuda::blocks_for(a.num_parcels * a.choices), cuda::kThreads, 0, a.call.stream>>>(
        static_cast<const T*>(a.parcels), a);
  });
  cuda::check_launch("experts_of_parcels");
}

}  // namespace hanok
