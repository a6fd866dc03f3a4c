#include "model/kernels/packed.cuh"
#include "model/kernels/sum_by_row_cuda.h"

namespace hanok {
namespace cuda {
namespace {

constexpr int kWarps = 8, kAtOnce = 4;
constexpr int kChunk = 32;  // sorted uses that one warp walks through

struct Uses {
  const int64_t *key, *use;
  int64_t count, taps, rows, first;
  __device__ bool is_here(int64_t which) const { return which >= first && which < first + rows; }
};

// Where a warp stands: 32 packs of columns of one chunk. Blocks that follow each other take the same chunks, so that
// the parts of a row are read at about the same time.
struct Spot {
  int64_t group, chunk, begin, end, at;
  __device__ explicit Spot(unsigned tiles)
      : group(blockIdx.x / tiles),
        chunk(group * kWarps + threadIdx.y),
        begin(chunk * kChunk),
        end(begin + kChunk),
        at((blockIdx.x - group * tiles) * 32 + threadIdx.x) {}
};

template <class O, int N>
__device__ inline void put_sum(O* out, const Wide<O> (&sum)[N], bool adds) {
  Pack<O, N> total = {};
  if (adds) total = load<N>(out);
#pragma unroll
  for (int n = 0; n < N; ++n) total.v[n] = narrow<O>(adds ? widen(total.v[n]) + sum[n] : sum[n]);
  store<N>(out, total);
}

// A key whose uses all lie in the chunk is done here. Of the others the chunk's sums go to `partial`: row 0 of its two
// for the key that came over from the chunk before, row 1 for the key that begins here and goes on.
template <class T, class O, int N>
__global__ void __launch_bounds__(32 * kWarps, sizeof(T) < 8 ? 3 : 2) sum_chunks(
    Uses uses, const Wide<T>* weight, const T* dy, O* out, Wide<T>* partial, int64_t packs, unsigned tiles, bool adds) {
  using A = Wide<T>;
  const Spot spot(tiles);
  if (spot.begin >= uses.count) return;
  const int count = static_cast<int>(min(int64_t{kChunk}, uses.count - spot.begin)), lane = threadIdx.x;
  const int64_t width = packs * N;
  const bool in_chunk = lane < count, in_row = spot.at < packs;
  const int64_t own_key = in_chunk ? uses.key[spot.begin + lane] : -1;
  const int64_t own_use = in_chunk ? uses.use[spot.begin + lane] : 0;
  const A own_share = weight && in_chunk ? weight[own_use] : A(1);
  const unsigned own_row = static_cast<unsigned>(own_use) / static_cast<unsigned>(uses.taps);
  const int64_t next_key = __shfl_down_sync(~0u, own_key, 1);
  // Bit i: use i of the chunk is the last of its key in it; its key is one of this rank's.
  const unsigned lasts = __ballot_sync(~0u, in_chunk && (lane + 1 == count || next_key != own_key));
  const unsigned here = __ballot_sync(~0u, in_chunk && uses.is_here(own_key));
  const bool came_over = spot.begin > 0 && uses.key[spot.begin - 1] == uses.key[spot.begin];
  const bool goes_on = spot.end < uses.count && uses.key[spot.end] == uses.key[spot.end - 1];
  A sum[N] = {};
  Pack<T, N> v[kAtOnce], next[kAtOnce];
  const auto load_next = [&](int base) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t row = __shfl_sync(~0u, own_row, base + i);
      if ((here >> (base + i) & 1) && in_row) next[i] = load<N>(dy + row * width + spot.at * N);
    }
  };
  load_next(0);
  for (int base = 0; base < count; base += kAtOnce) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) v[i] = next[i];
    if (base + kAtOnce < count) load_next(base + kAtOnce);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int place = base + i;
      if (!(here >> place & 1)) continue;
      const A share = __shfl_sync(~0u, own_share, place);
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] += share * widen(v[i].v[n]);
      if (!(lasts >> place & 1)) continue;
      const int64_t key = __shfl_sync(~0u, own_key, place);
      const bool from_before = came_over && (lasts & ((1u << place) - 1)) == 0;
      const bool into_next = goes_on && place + 1 == count;
      if (in_row && (from_before || into_next)) {
        A* row = partial + (spot.chunk * 2 + (from_before ? 0 : 1)) * width + spot.at * N;
        if constexpr (N == 1)
          row[0] = sum[0];
        else
          store_sums(row, sum);
      } else if (in_row) {
        put_sum(out + (key - uses.first) * width + spot.at * N, sum, adds);
      }
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] = 0;
    }
  }
}

// The last chunk that holds `key`, whose uses begin before chunk `next` and reach it. A warp looks at 32 chunks at
// once.
__device__ inline int64_t last_chunk_of(int64_t key, int64_t next, const Uses& uses) {
  for (int64_t last = next;;) {
    const int64_t other = (last + 1 + threadIdx.x) * kChunk;
    const unsigned others = ~__ballot_sync(~0u, other < uses.count && uses.key[other] == key);
    if (others) return last + __ffs(others) - 1;
    last += 32;
  }
}

// Adds up the keys that begin in a chunk and go on in the next ones: a warp those of a few chunks, the block together
// those of many.
template <class O, int N>
__global__ void __launch_bounds__(32 * kWarps)
    join_chunks(Uses uses, const Wide<O>* partial, O* out, int64_t packs, unsigned tiles, bool adds) {
  using A = Wide<O>;
  __shared__ int64_t lasts[kWarps];  // 0: nothing to join
  __shared__ A sums[kWarps][N][32];
  const Spot spot(tiles);
  const int64_t width = packs * N;
  const bool in_row = spot.at < packs;
  int64_t last = 0;
  if (spot.end < uses.count) {
    const int64_t key = uses.key[spot.end];
    if (uses.key[spot.end - 1] == key && uses.is_here(key) && (spot.begin == 0 || uses.key[spot.begin - 1] != key))
      last = last_chunk_of(key, spot.chunk + 1, uses);
  }
  // Sum of the chunks first, first + step, ... of a key that begins in chunk `begin`.
  const auto add_up = [&](int64_t begin, int64_t first, int64_t step, int64_t end, A(&sum)[N]) {
    if (!in_row) return;
#pragma unroll 4
    for (int64_t other = first; other <= end; other += step) {
      const A* row = partial + (other * 2 + (other == begin ? 1 : 0)) * width + spot.at * N;
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] += row[n];
    }
  };
  const bool is_long = last - spot.chunk >= 2 * kWarps;
  if (last && !is_long && in_row) {
    A sum[N] = {};
    add_up(spot.chunk, spot.chunk, 1, last, sum);
    put_sum(out + (uses.key[spot.end] - uses.first) * width + spot.at * N, sum, adds);
  }
  if (threadIdx.x == 0) lasts[threadIdx.y] = is_long ? last : 0;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) {
    if (lasts[warp] == 0) continue;
    const int64_t chunk = spot.group * kWarps + warp;
    A sum[N] = {};
    add_up(chunk, chunk + threadIdx.y, kWarps, lasts[warp], sum);
#pragma unroll
    for (int n = 0; n < N; ++n) sums[threadIdx.y][n][threadIdx.x] = sum[n];
    __syncthreads();
    if (threadIdx.y == 0 && in_row) {
      for (int other = 1; other < kWarps; ++other)
#pragma unroll
        for (int n = 0; n < N; ++n) sum[n] += sums[other][n][threadIdx.x];
      put_sum(out + (uses.key[(chunk + 1) * kChunk] - uses.first) * width + spot.at * N, sum, adds);
    }
    __syncthreads();
  }
}

template <class T, class O, int N>
void sum_on(const SumByRow& a) {
  const int64_t packs = a.width / N, chunks = divide_up(a.uses, kChunk);
  const Uses uses{a.key, a.use, a.uses, a.taps, a.rows, a.first};
  const int64_t tiles = divide_up(packs, 32), blocks = divide_up(chunks, kWarps) * tiles;
  HANOK_REQUIRE(a.uses < int64_t{1} << 32 && blocks < int64_t{1} << 31, kShape)
      << "sum_by_row: got " << a.uses << " uses of rows of width " << a.width << ", expected fewer than 2^32 uses and "
      << "2^31 blocks of them; shorten the row, or cut it over more ranks";
  auto* partial = static_cast<Wide<T>*>(a.partial);
  auto* out = static_cast<O*>(a.out);
  const dim3 grid(static_cast<unsigned>(blocks)), block(32, kWarps);
  const auto* weight = static_cast<const Wide<T>*>(a.weight);
  const auto* dy = static_cast<const T*>(a.dy);
  sum_chunks<T, O, N>
      <<<grid, block, 0, a.call.stream>>>(uses, weight, dy, out, partial, packs, static_cast<unsigned>(tiles), a.adds);
  check_launch("sum_by_row");
  if (chunks == 1) return;
  join_chunks<O, N><<<grid, block, 0, a.call.stream>>>(uses, partial, out, packs, static_cast<unsigned>(tiles), a.adds);
}

template <class T, class O>
void sum_into(const SumByRow& a) {
  constexpr int N = kPackOf<T>;
  fits_packs<N, T>(a.width, a.dy) && is_aligned(a.out) ? sum_on<T, O, N>(a) : sum_on<T, O, 1>(a);
}

}  // namespace
}  // namespace cuda

void launch(const SumByRow& args) {
  if (args.uses == 0 || args.width == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) {
    using T = decltype(tag);
    args.is_wide ? cuda::sum_into<T, cuda::Wide<T>>(args) : cuda::sum_into<T, T>(args);
  });
  cuda::check_launch("sum_by_row of several chunks");
}

int64_t sum_by_row_partials(int64_t uses) {
  return 2 * cuda::divide_up(uses, cuda::kChunk);
}

}  // namespace hanok
