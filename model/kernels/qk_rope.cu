#include "base/cuda/device.cuh"
#include "model/kernels/column_sums.cuh"
#include "model/kernels/qk_rope_cuda.h"

namespace hanok {
namespace cuda {
namespace {

// A head belongs to `lanes` neighbours of a warp (a power of 2 when they must add up). Each of them takes up to kItems
// packs j of the head's first half, and the packs of the second half that those turn with.
struct Layout {
  int64_t rows;
  int heads, kv_heads, width;  // N, K, H
  int packs;                   // of half a head
  int lanes;
  __host__ __device__ int turned() const { return heads + kv_heads; }
  __host__ __device__ int all() const { return heads + 2 * kv_heads; }
  __host__ __device__ unsigned slots() const { return static_cast<unsigned>(rows) * all() * lanes; }
};

struct Place {
  int64_t row;
  int head, lane;
  bool inside;
};

// 32 bits: a division of 64 costs more than the rest of the index arithmetic together.
__device__ inline Place place_of(unsigned slot, const Layout& layout) {
  const unsigned unit = slot / layout.lanes, row = unit / layout.all();
  return {row,
          static_cast<int>(unit - row * layout.all()),
          static_cast<int>(slot - unit * layout.lanes),
          row < layout.rows};
}

template <class T, class C, int N>
struct Turn {
  Wide<T> cos[N], sin[N];
  __device__ Turn(const C* cos_row, const C* sin_row, int at) {
    const Pack<C, N> c = load<N>(cos_row + at), s = load<N>(sin_row + at);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      cos[i] = widen(c.v[i]);
      sin[i] = widen(s.v[i]);
    }
  }
};

template <class T, class C, int N, int kItems, bool kNorm>
__global__ void __launch_bounds__(256) forward(const T* x,
                                               const T* q_weight,
                                               const T* k_weight,
                                               const C* cos,
                                               const C* sin,
                                               T* y,
                                               Wide<T>* rstd,
                                               Layout layout,
                                               Wide<T> eps) {
  using A = Wide<T>;
  const Place place = place_of(blockIdx.x * blockDim.x + threadIdx.x, layout);
  const int half = layout.width / 2;
  const int64_t first = (place.row * layout.all() + place.head) * layout.width;
  const bool turns = place.inside && place.head < layout.turned();
  const T* weight = place.head < layout.heads ? q_weight : k_weight;
  // All loads come before the sum: afterwards they would wait a second time.
  Pack<T, N> a[kItems], b[kItems], wa[kNorm ? kItems : 1], wb[kNorm ? kItems : 1];
  Pack<C, N> c[kItems], s[kItems];
  A squares = 0;
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const int j = place.lane + item * layout.lanes;
    if (!place.inside || j >= layout.packs) continue;
    a[item] = load<N>(x + first + j * N);
    b[item] = load<N>(x + first + half + j * N);
    if (turns) {
      c[item] = load<N>(cos + place.row * half + j * N);
      s[item] = load<N>(sin + place.row * half + j * N);
      if constexpr (kNorm) {
        wa[item] = load<N>(weight + j * N);
        wb[item] = load<N>(weight + half + j * N);
      }
    }
    if constexpr (kNorm) {
      for (int i = 0; i < N; ++i)
        squares += widen(a[item].v[i]) * widen(a[item].v[i]) + widen(b[item].v[i]) * widen(b[item].v[i]);
    }
  }
  A scale = 1;
  if constexpr (kNorm) scale = reciprocal_root(lane_sum(squares, layout.lanes) / static_cast<A>(layout.width) + eps);
  if (!place.inside) return;
  if (kNorm && turns && place.lane == 0) rstd[place.row * layout.turned() + place.head] = scale;
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const int j = place.lane + item * layout.lanes;
    if (j >= layout.packs) continue;
    if (turns) {
      A p[N], q[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        p[i] = widen(a[item].v[i]);
        q[i] = widen(b[item].v[i]);
      }
      if constexpr (kNorm) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          p[i] = rounded<T>(rounded<T>(p[i] * scale) * widen(wa[item].v[i]));
          q[i] = rounded<T>(rounded<T>(q[i] * scale) * widen(wb[item].v[i]));
        }
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A cosine = widen(c[item].v[i]), sine = widen(s[item].v[i]);
        a[item].v[i] = narrow<T>(rounded<C>(p[i] * cosine) - rounded<C>(q[i] * sine));
        b[item].v[i] = narrow<T>(rounded<C>(q[i] * cosine) + rounded<C>(p[i] * sine));
      }
    }
    store<N>(y + first + j * N, a[item]);
    store<N>(y + first + half + j * N, b[item]);
  }
}

// Sums over the heads that threads of a block have seen -> partial[blockIdx.x][q, k][H]. Every lane of a group keeps
// the same packs j through the loop over heads, so its sums are its own until the end.
template <class A, int N, int kItems>
__device__ void write_partial(A (&sums)[2][kItems][2][N], A* partial, const Layout& layout, A* shared) {
  const int half = layout.width / 2, lane = threadIdx.x % layout.lanes, warp = threadIdx.x / 32;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      const int j = lane + item * layout.lanes;
#pragma unroll
      for (int side = 0; side < 2; ++side) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          A sum = sums[which][item][side][i];
          for (int step = 16; step >= layout.lanes; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
          if (threadIdx.x % 32 < layout.lanes && j < layout.packs)
            shared[warp * layout.width + side * half + j * N + i] = sum;
        }
      }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < layout.width; at += blockDim.x) {
      A sum = 0;
      for (int other = 0; other < blockDim.x / 32; ++other) sum += shared[other * layout.width + at];
      partial[(blockIdx.x * int64_t{2} + which) * layout.width + at] = sum;
    }
    __syncthreads();
  }
}

template <class T, class C, int N, int kItems, bool kNorm>
__global__ void __launch_bounds__(256) backward(const T* dy,
                                                const T* x,
                                                const T* q_weight,
                                                const T* k_weight,
                                                const C* cos,
                                                const C* sin,
                                                const Wide<T>* rstd,
                                                T* dx,
                                                Wide<T>* partial,
                                                Layout layout) {
  using A = Wide<T>;
  extern __shared__ unsigned char shared_bytes[];
  const int half = layout.width / 2;
  const unsigned slots = layout.slots();
  A sums[kNorm ? 2 : 1][kItems][2][N] = {};
  // Whole warps go through the loop together: lanes beyond the end take part in the sums with nothing.
  for (unsigned base = blockIdx.x * blockDim.x; base < slots; base += gridDim.x * blockDim.x) {
    const Place place = place_of(base + threadIdx.x, layout);
    const int64_t first = (place.row * layout.all() + place.head) * layout.width;
    const bool turns = place.inside && place.head < layout.turned(), is_q = place.head < layout.heads;
    A scale = 1, dot = 0;
    if (kNorm && turns) scale = rstd[place.row * layout.turned() + place.head];
    Pack<T, N> a[kItems], b[kItems];  // of x
    A ga[kItems][N], gb[kItems][N];   // turned back; then times the weight
    if (place.inside) {
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const int j = place.lane + item * layout.lanes;
        if (j >= layout.packs) continue;
        const Pack<T, N> da = load<N>(dy + first + j * N), db = load<N>(dy + first + half + j * N);
        if (!turns) {
          store<N>(dx + first + j * N, da);
          store<N>(dx + first + half + j * N, db);
          continue;
        }
        if constexpr (kNorm) {
          a[item] = load<N>(x + first + j * N);
          b[item] = load<N>(x + first + half + j * N);
        }
        const Turn<T, C, N> turn(cos + place.row * half, sin + place.row * half, j * N);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const A p = widen(da.v[i]), q = widen(db.v[i]), c = turn.cos[i], s = turn.sin[i];
          ga[item][i] = p * c + q * s;
          gb[item][i] = q * c - p * s;
        }
        if constexpr (kNorm) {
          const T* weight = is_q ? q_weight : k_weight;
          const Pack<T, N> wa = load<N>(weight + j * N), wb = load<N>(weight + half + j * N);
#pragma unroll
          for (int i = 0; i < N; ++i) {
            const A pa = ga[item][i] * (widen(a[item].v[i]) * scale), pb = gb[item][i] * (widen(b[item].v[i]) * scale);
            sums[0][item][0][i] += is_q ? pa : A(0);
            sums[0][item][1][i] += is_q ? pb : A(0);
            sums[1][item][0][i] += is_q ? A(0) : pa;
            sums[1][item][1][i] += is_q ? A(0) : pb;
            ga[item][i] *= widen(wa.v[i]);
            gb[item][i] *= widen(wb.v[i]);
            dot += pa * widen(wa.v[i]) + pb * widen(wb.v[i]);
          }
        }
      }
    }
    A mean = 0;
    if constexpr (kNorm) mean = lane_sum(dot, layout.lanes) / static_cast<A>(layout.width);
    if (!turns) continue;
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      const int j = place.lane + item * layout.lanes;
      if (j >= layout.packs) continue;
      Pack<T, N> da, db;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        A p = ga[item][i], q = gb[item][i];
        if constexpr (kNorm) {
          p = scale * (p - widen(a[item].v[i]) * scale * mean);
          q = scale * (q - widen(b[item].v[i]) * scale * mean);
        }
        da.v[i] = narrow<T>(p);
        db.v[i] = narrow<T>(q);
      }
      store<N>(dx + first + j * N, da);
      store<N>(dx + first + half + j * N, db);
    }
  }
  if constexpr (kNorm) write_partial(sums, partial, layout, reinterpret_cast<A*>(shared_bytes));
}

Layout layout_of(const QkRopeSizes& sizes, int pack, bool norm) {
  Layout layout{sizes.rows, sizes.heads, sizes.kv_heads, sizes.width, sizes.width / 2 / pack, sizes.width / 2 / pack};
  if (norm) {
    layout.lanes = 1;
    while (layout.lanes < std::min(layout.packs, 32)) layout.lanes *= 2;
  }
  HANOK_REQUIRE(layout.rows * layout.all() * layout.lanes < int64_t{1} << 31, kShape)
      << "qk_rope: got " << layout.rows << " rows of " << layout.all() << " heads, expected fewer than 2^31 packs; "
      << "shorten the row, or cut it over more ranks";
  return layout;
}

template <class T, class C, int N, int kItems, bool kNorm>
void forward_on(const QkRopeForward& a) {
  const Layout layout = layout_of(a.sizes, N, kNorm);
  forward<T, C, N, kItems, kNorm><<<static_cast<unsigned>(divide_up(layout.slots(), 256)), 256, 0, a.call.stream>>>(
      static_cast<const T*>(a.x),
      static_cast<const T*>(a.q_weight),
      static_cast<const T*>(a.k_weight),
      static_cast<const C*>(a.cos),
      static_cast<const C*>(a.sin),
      static_cast<T*>(a.y),
      static_cast<Wide<T>*>(a.rstd),
      layout,
      static_cast<Wide<T>>(a.eps));
}

template <class T, class C, int N, int kItems, bool kNorm>
void backward_on(const QkRopeBackward& a) {
  const Layout layout = layout_of(a.sizes, N, kNorm);
  const int64_t blocks = kNorm ? qk_rope_partials(layout.rows) : divide_up(layout.slots(), 256);
  const size_t shared = kNorm ? 256 / 32 * layout.width * sizeof(Wide<T>) : 0;
  backward<T, C, N, kItems, kNorm>
      <<<static_cast<unsigned>(blocks), 256, shared, a.call.stream>>>(static_cast<const T*>(a.dy),
                                                                      static_cast<const T*>(a.x),
                                                                      static_cast<const T*>(a.q_weight),
                                                                      static_cast<const T*>(a.k_weight),
                                                                      static_cast<const C*>(a.cos),
                                                                      static_cast<const C*>(a.sin),
                                                                      static_cast<const Wide<T>*>(a.rstd),
                                                                      static_cast<T*>(a.dx),
                                                                      static_cast<Wide<T>*>(a.partial),
                                                                      layout);
  check_launch("qk_rope backward");
  if (!kNorm) return;
  sum_columns<T>(a.partial, a.dweight, blocks, 2 * layout.width, a.call.stream);
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
  return std::min<int64_t>(cuda::num_multiprocessors() * 4, std::max<int64_t>(1, rows));
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
