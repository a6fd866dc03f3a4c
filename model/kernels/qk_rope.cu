#include "model/kernels/column_sums.cuh"
#include "model/kernels/qk_rope.cuh"
#include "model/kernels/qk_rope_cuda.h"

namespace hanok {
namespace cuda {
namespace {

// kBack: x is the gradient of what was turned without a norm.
template <class T, class C, int N, int kItems, int kHeads, bool kNorm, bool kBack>
__global__ void __launch_bounds__(256) turn_heads(const T* x,
                                                  const T* q_weight,
                                                  const T* k_weight,
                                                  const C* cos,
                                                  const C* sin,
                                                  T* y,
                                                  Wide<T>* rstd,
                                                  Layout layout,
                                                  Wide<T> per_value,
                                                  Wide<T> eps) {
  using A = Wide<T>;
  const Place place = place_of(blockIdx.x * blockDim.x + threadIdx.x, layout);
  const int half = layout.width / 2;
  const int64_t row_start = place.row * layout.all() * layout.width;
  const auto is_in = [&](int h) { return place.inside && place.head + h * layout.groups < layout.all(); };
  // All loads of the row come before the sums: afterwards they would wait a second time.
  Pack<T, N> a[kHeads][kItems], b[kHeads][kItems];
  Pack<C, N> c[kItems], s[kItems];
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const int j = place.lane + item * layout.lanes;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (!is_in(h) || j >= layout.packs) continue;
      const T* head = x + row_start + (place.head + h * layout.groups) * layout.width + j * N;
      a[h][item] = load<N>(head);
      b[h][item] = load<N>(head + half);
    }
    if (!is_in(0) || place.head >= layout.turned() || j >= layout.packs) continue;
    c[item] = load<N>(cos + place.row * half + j * N);
    s[item] = load<N>(sin + place.row * half + j * N);
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const int head = place.head + h * layout.groups;
    const bool turns = is_in(h) && head < layout.turned();
    A scale = 1;
    if constexpr (kNorm) {
      A squares = 0;
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        if (turns && place.lane + item * layout.lanes < layout.packs)
          squares += squares_of(a[h][item]) + squares_of(b[h][item]);
      }
      scale = inverse_root(lane_sum(squares, layout.lanes) * per_value + eps);
      if (turns && place.lane == 0) rstd[place.row * layout.turned() + head] = scale;
    }
    if (!is_in(h)) continue;
    const T* weight = head < layout.heads ? q_weight : k_weight;
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      const int j = place.lane + item * layout.lanes;
      if (j >= layout.packs) continue;
      Pack<T, N>&first = a[h][item], &second = b[h][item];
      if (turns) {
        if constexpr (kNorm) {
          first = scaled(first, scale, load<N>(weight + j * N));
          second = scaled(second, scale, load<N>(weight + half + j * N));
        }
        if constexpr (kBack) {
          A p[N], q[N];
          turn_back(first, second, c[item], s[item], p, q);
#pragma unroll
          for (int i = 0; i < N; ++i) {
            first.v[i] = narrow<T>(p[i]);
            second.v[i] = narrow<T>(q[i]);
          }
        } else {
          turn(first, second, c[item], s[item]);
        }
      }
      T* to = y + row_start + head * layout.width + j * N;
      store<N>(to, first);
      store<N>(to + half, second);
    }
  }
}

constexpr int kBackwardBlocks = 3;  // on a multiprocessor at once, each of 256 threads

// Sums over the heads that threads of a block have seen -> partial_H. Every lane of a group keeps the same packs j
// through the loop over heads, so its sums are its own until the end.
template <class A, int N, int kItems>
__device__ void write_partial(A (&sums)[kItems][2][N], A* partial, const Layout& layout, A* shared) {
  const int half = layout.width / 2, lane = threadIdx.x % layout.lanes, warp = threadIdx.x / 32;
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const int j = lane + item * layout.lanes;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        A sum = sums[item][side][i];
        for (int step = 16; step >= layout.lanes; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (threadIdx.x % 32 < layout.lanes && j < layout.packs)
          shared[warp * layout.width + side * half + j * N + i] = sum;
      }
    }
  }
  __syncthreads();
  for (int at = threadIdx.x; at < layout.width; at += blockDim.x) {
    A sum = 0;
#pragma unroll 8
    for (int other = 0; other < blockDim.x / 32; ++other) sum += shared[other * layout.width + at];
    partial[at] = sum;
  }
  __syncthreads();
}

// The query heads, or the key heads, of all rows: `heads` of them from head `first` of each row.
template <class T, class C, int N, int kItems>
__device__ void normed_backward(const T* dy,
                                const T* x,
                                const T* weight,
                                const C* cos,
                                const C* sin,
                                const Wide<T>* rstd,
                                T* dx,
                                Wide<T> (&sums)[kItems][2][N],
                                const Layout& layout,
                                Wide<T> per_value,
                                int first,
                                int heads) {
  using A = Wide<T>;
  const int half = layout.width / 2, lane = threadIdx.x % layout.lanes;
  const unsigned units = static_cast<unsigned>(layout.rows) * heads, step = gridDim.x * (blockDim.x / layout.lanes);
  const unsigned of_block = blockIdx.x * (blockDim.x / layout.lanes), own = threadIdx.x / layout.lanes;
  // Whole blocks go through the loop together: lanes beyond the end take part in the sums with nothing.
  for (unsigned base = of_block; base < units; base += step) {
    const unsigned unit = base + own, row = unit / heads, head = first + (unit - row * heads);
    const bool inside = unit < units;
    const int64_t start = (int64_t{row} * layout.all() + head) * layout.width;
    Pack<T, N> a[kItems], b[kItems], da[kItems], db[kItems];
    Pack<C, N> c[kItems], s[kItems];
    A scale = 0, dot = 0, ga[kItems][N], gb[kItems][N];  // turned back, and times the weight
    if (inside) scale = rstd[int64_t{row} * layout.turned() + head];
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      const int j = lane + item * layout.lanes;
      if (!inside || j >= layout.packs) continue;
      da[item] = load<N>(dy + start + j * N);
      db[item] = load<N>(dy + start + half + j * N);
      a[item] = load<N>(x + start + j * N);
      b[item] = load<N>(x + start + half + j * N);
      c[item] = load<N>(cos + int64_t{row} * half + j * N);
      s[item] = load<N>(sin + int64_t{row} * half + j * N);
    }
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      const int j = lane + item * layout.lanes;
      if (!inside || j >= layout.packs) continue;
      turn_back(da[item], db[item], c[item], s[item], ga[item], gb[item]);
      const Pack<T, N> wa = load<N>(weight + j * N), wb = load<N>(weight + half + j * N);  // kept, they would spill
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A pa = ga[item][i] * (widen(a[item].v[i]) * scale), pb = gb[item][i] * (widen(b[item].v[i]) * scale);
        sums[item][0][i] += pa;
        sums[item][1][i] += pb;
        ga[item][i] *= widen(wa.v[i]);
        gb[item][i] *= widen(wb.v[i]);
        dot += pa * widen(wa.v[i]) + pb * widen(wb.v[i]);
      }
    }
    const A shrink = scale * per_value * lane_sum(dot, layout.lanes);
    if (!inside) continue;
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      const int j = lane + item * layout.lanes;
      if (j >= layout.packs) continue;
      forget_unpacked(a[item]);
      forget_unpacked(b[item]);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        da[item].v[i] = narrow<T>(scale * (ga[item][i] - widen(a[item].v[i]) * shrink));
        db[item].v[i] = narrow<T>(scale * (gb[item][i] - widen(b[item].v[i]) * shrink));
      }
      store<N>(dx + start + j * N, da[item]);
      store<N>(dx + start + half + j * N, db[item]);
    }
  }
}

// Values pass: `packs` packs of N of every row, from `first` on.
template <class T, int N>
__device__ void copy_values(const T* dy, T* dx, const Layout& layout) {
  constexpr int kAtOnce = 4;
  const unsigned packs = layout.kv_heads * layout.width / N, count = static_cast<unsigned>(layout.rows) * packs,
                 step = gridDim.x * blockDim.x;
  for (unsigned base = blockIdx.x * blockDim.x + threadIdx.x; base < count; base += kAtOnce * step) {
    Pack<T, N> v[kAtOnce];
    int64_t at[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const unsigned pack = base + i * step, row = pack / packs;
      at[i] = (int64_t{row} * layout.all() + layout.turned()) * layout.width + (pack - row * packs) * N;
      if (pack < count) v[i] = load<N>(dy + at[i]);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (base + i * step < count) store<N>(dx + at[i], v[i]);
  }
}

// Queries, keys and values one after another, so that a thread sums for one weight at a time.
template <class T, class C, int N, int kItems>
__global__ void __launch_bounds__(256, kBackwardBlocks) backward_normed(const T* dy,
                                                                        const T* x,
                                                                        const T* q_weight,
                                                                        const T* k_weight,
                                                                        const C* cos,
                                                                        const C* sin,
                                                                        const Wide<T>* rstd,
                                                                        T* dx,
                                                                        Wide<T>* partial,
                                                                        Layout layout,
                                                                        Wide<T> per_value) {
  extern __shared__ unsigned char shared_bytes[];
  auto* shared = reinterpret_cast<Wide<T>*>(shared_bytes);
#pragma unroll 1
  for (int which = 0; which < 2; ++which) {
    Wide<T> sums[kItems][2][N] = {};
    normed_backward<T, C, N, kItems>(dy,
                                     x,
                                     which == 0 ? q_weight : k_weight,
                                     cos,
                                     sin,
                                     rstd,
                                     dx,
                                     sums,
                                     layout,
                                     per_value,
                                     which == 0 ? 0 : layout.heads,
                                     which == 0 ? layout.heads : layout.kv_heads);
    write_partial(sums, partial + (blockIdx.x * int64_t{2} + which) * layout.width, layout, shared);
  }
  copy_values<T, N>(dy, dx, layout);
}

Layout layout_of(const QkRopeSizes& sizes, int pack, bool norm, int heads_at_once) {
  const int packs = sizes.width / 2 / pack, all = sizes.heads + 2 * sizes.kv_heads;
  Layout layout{sizes.rows, sizes.heads, sizes.kv_heads, sizes.width, packs, packs, 0};
  layout.groups = static_cast<int>(divide_up(all, heads_at_once));
  if (norm) {
    layout.lanes = 1;
    while (layout.lanes < std::min(layout.packs, 32)) layout.lanes *= 2;
  }
  HANOK_REQUIRE(layout.rows * (layout.all() + heads_at_once) * std::max(layout.lanes, 2 * packs) < int64_t{1} << 31,
                kShape)
      << "qk_rope: got " << layout.rows << " rows of " << layout.all() << " heads, expected fewer than 2^31 packs; "
      << "shorten the row, or cut it over more ranks";
  return layout;
}

// Heads of a row that a thread takes: as many as keep 64 bytes of it under way.
template <class T, int N, int kItems>
constexpr int kHeadsAtOnce = kItems != 1           ? 1
                             : N * sizeof(T) == 16 ? 2
                                                   : 4;

template <class T, class C, int N, int kItems, bool kNorm>
void forward_on(const QkRopeForward& a) {
  constexpr int kHeads = kHeadsAtOnce<T, N, kItems>;
  const Layout layout = layout_of(a.sizes, N, kNorm, kHeads);
  turn_heads<T, C, N, kItems, kHeads, kNorm, false>
      <<<static_cast<unsigned>(divide_up(layout.slots(), 256)), 256, 0, a.call.stream>>>(
          static_cast<const T*>(a.x),
          static_cast<const T*>(a.q_weight),
          static_cast<const T*>(a.k_weight),
          static_cast<const C*>(a.cos),
          static_cast<const C*>(a.sin),
          static_cast<T*>(a.y),
          static_cast<Wide<T>*>(a.rstd),
          layout,
          Wide<T>(1) / static_cast<Wide<T>>(layout.width),
          static_cast<Wide<T>>(a.eps));
}

template <class T, class C, int N, int kItems>
void backward_turned(const QkRopeBackward& a) {
  constexpr int kHeads = kHeadsAtOnce<T, N, kItems>;
  const Layout layout = layout_of(a.sizes, N, false, kHeads);
  turn_heads<T, C, N, kItems, kHeads, false, true>
      <<<static_cast<unsigned>(divide_up(layout.slots(), 256)), 256, 0, a.call.stream>>>(static_cast<const T*>(a.dy),
                                                                                         nullptr,
                                                                                         nullptr,
                                                                                         static_cast<const C*>(a.cos),
                                                                                         static_cast<const C*>(a.sin),
                                                                                         static_cast<T*>(a.dx),
                                                                                         nullptr,
                                                                                         layout,
                                                                                         Wide<T>(0),
                                                                                         Wide<T>(0));
}

template <class T, class C, int N, int kItems, bool kNorm>
void backward_on(const QkRopeBackward& a) {
  if constexpr (!kNorm) {
    if (a.sizes.rows > 0) backward_turned<T, C, N, kItems>(a);
  } else {
    const Layout layout = layout_of(a.sizes, N, true, 1);
    const int64_t blocks = qk_rope_partials(layout.rows);
    const size_t shared = 256 / 32 * layout.width * sizeof(Wide<T>);
    backward_normed<T, C, N, kItems><<<static_cast<unsigned>(blocks), 256, shared, a.call.stream>>>(
        static_cast<const T*>(a.dy),
        static_cast<const T*>(a.x),
        static_cast<const T*>(a.q_weight),
        static_cast<const T*>(a.k_weight),
        static_cast<const C*>(a.cos),
        static_cast<const C*>(a.sin),
        static_cast<const Wide<T>*>(a.rstd),
        static_cast<T*>(a.dx),
        static_cast<Wide<T>*>(a.partial),
        layout,
        Wide<T>(1) / static_cast<Wide<T>>(layout.width));
    check_launch("qk_rope backward");
    sum_columns<T>(a.partial, a.dweight, blocks, 2 * layout.width, a.call.stream);
  }
}

/// f(tag of C, pack size N, items a lane) by what widths and addresses allow. errors: kShape
template <class T, class F>
void choose(bool wide_tables, const QkRopeSizes& sizes, bool aligned, const char* kernel, const F& f) {
  const int half = sizes.width / 2;
  const auto with_tables = [&](auto pack, auto items) {
    if constexpr (sizeof(T) == 2) {
      if (wide_tables) return f(float{}, pack, items);
    }
    f(T{}, pack, items);
  };
  using One = std::integral_constant<int, 1>;
  if constexpr (sizeof(T) < 8) {
    constexpr int N = kPackOf<T>;
    if (aligned && half % N == 0 && half / N <= 32) return with_tables(std::integral_constant<int, N>{}, One{});
    if constexpr (sizeof(T) == 2) {  // heads of 72
      if (aligned && half % 4 == 0 && half / 4 <= 32) return with_tables(std::integral_constant<int, 4>{}, One{});
    }
  }
  HANOK_REQUIRE(half <= 128, kShape) << kernel << ": got heads of width " << sizes.width
                                     << ", expected at most 256, or a multiple of 16 up to 512; use the CPU";
  with_tables(One{}, std::integral_constant<int, 4>{});
}

}  // namespace
}  // namespace cuda

int64_t qk_rope_partials(int64_t rows) {
  return std::min<int64_t>(cuda::num_multiprocessors() * cuda::kBackwardBlocks, std::max<int64_t>(1, rows));
}

void launch(const QkRopeForward& a) {
  if (a.sizes.rows == 0) return;
  cuda::dispatch(a.call.type, [&](auto tag) {
    using T = decltype(tag);
    const bool aligned = cuda::fits_packs<cuda::kPackOf<T>, T>(0, a.x, a.q_weight, a.k_weight, a.y) &&
                         cuda::is_aligned(a.cos) && cuda::is_aligned(a.sin);
    cuda::choose<T>(a.wide_tables, a.sizes, aligned, "qk_rope", [&](auto table, auto pack, auto items) {
      using C = decltype(table);
      a.q_weight ? cuda::forward_on<T, C, pack, items, true>(a) : cuda::forward_on<T, C, pack, items, false>(a);
    });
  });
  cuda::check_launch("qk_rope forward");
}

void launch(const QkRopeBackward& a) {
  cuda::dispatch(a.call.type, [&](auto tag) {
    using T = decltype(tag);
    const bool aligned = cuda::fits_packs<cuda::kPackOf<T>, T>(0, a.dy, a.x, a.q_weight, a.k_weight, a.dx) &&
                         cuda::is_aligned(a.cos) && cuda::is_aligned(a.sin);
    cuda::choose<T>(a.wide_tables, a.sizes, aligned, "qk_rope", [&](auto table, auto pack, auto items) {
      using C = decltype(table);
      a.q_weight ? cuda::backward_on<T, C, pack, items, true>(a) : cuda::backward_on<T, C, pack, items, false>(a);
    });
  });
  cuda::check_launch("qk_rope backward");
}

}  // namespace hanok
