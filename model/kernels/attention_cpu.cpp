// One unit of work is one key/value head of one piece (forward: a stretch of its query rows; backward: all pieces that
// share keys). Its operands are
// first copied into aligned scratch in f32, so that neither strides, alignment nor neighbours can change a bit of the
// result, and every product runs in the unit's own thread.
#include "model/kernels/attention_cpu.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <limits>

#include "model/kernels/dispatch.h"
#include "model/kernels/small_gemm.h"

namespace hanok::attention_cpu {
namespace {

constexpr int64_t kQueryBlock = 60;     // rows of scores at a time; a multiple of the product's tile
constexpr int64_t kQueryStretch = 480;  // query rows of one forward unit

int64_t padded(int64_t columns) {
  return (columns + kGemmColumns - 1) / kGemmColumns * kGemmColumns;
}

/// Calls f(unit, scratch) for every unit, handing the next one to whichever thread is free.
template <class A, class F>
void for_each_unit(int64_t units, int64_t scratch_size, const F& f) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(units, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    Tensor scratch;
    for (int64_t unit; (unit = next.fetch_add(1)) < units;) {
      if (!scratch.defined()) scratch = at::empty({scratch_size}, at::CppTypeToScalarType<A>::value);
      f(unit, scratch.mutable_data_ptr<A>());
    }
  });
}

template <class A>
struct Scratch {
  A* next;
  A* take(int64_t size) {
    A* begin = next;
    next += padded(size);
    return begin;
  }
};

template <class T, class A>
HANOK_SIMD_BODY void load(const T* from, int64_t from_row, A* to, int64_t to_row, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) to[r * to_row + i] = static_cast<A>(from[r * from_row + i]);
    for (int64_t i = width; i < to_row; ++i) to[r * to_row + i] = 0;
  }
}

template <class T, class A>
HANOK_SIMD_BODY void load_transposed(
    const T* from, int64_t from_row, A* to, int64_t to_row, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t r = 0; r < rows; ++r) to[i * to_row + r] = static_cast<A>(from[r * from_row + i]);
    for (int64_t r = rows; r < to_row; ++r) to[i * to_row + r] = 0;
  }
}

/// Rows [first, last) of one head against the keys of their piece; pointers are at the piece's first query and key.
template <class T, class A>
struct ForwardUnit {
  const T *q, *k, *v;
  int64_t q_row, kv_row;  // elements from row to row
  T* out;
  int64_t out_row;
  A* log_sum;  // of query head 0; the next head is log_sum_row further
  int64_t log_sum_row, group, width, first, last, length;
  int64_t ahead;  // keys before the one that belongs to the first query; causal only
  bool causal;
  A scale;
  A* scratch;
};

template <class A>
int64_t forward_scratch(int64_t length, int64_t width) {
  return width * padded(length) + length * padded(width) + kQueryBlock * (padded(width) * 2 + padded(length) + 1) +
         8 * kGemmColumns;
}

struct Forward {
  template <class W, class T, class A>
  HANOK_SIMD_BODY void operator()(W w, ForwardUnit<T, A> u) const {
    const int64_t keys = u.causal ? u.ahead + u.last : u.length;
    const int64_t keys_padded = padded(keys), width_padded = padded(u.width);
    Scratch<A> scratch{u.scratch};
    A* kt = scratch.take(u.width * keys_padded);
    A* v = scratch.take(keys * width_padded);
    A* q = scratch.take(kQueryBlock * width_padded);
    A* score = scratch.take(kQueryBlock * keys_padded);
    A* out = scratch.take(kQueryBlock * width_padded);
    A* total = scratch.take(kQueryBlock);
    load_transposed(u.k, u.kv_row, kt, keys_padded, keys, u.width);
    load(u.v, u.kv_row, v, width_padded, keys, u.width);
    for (int64_t head = 0; head < u.group; ++head) {
      for (int64_t begin = u.first; begin < u.last; begin += kQueryBlock) {
        const int64_t rows = std::min(kQueryBlock, u.last - begin);
        const int64_t used = u.causal ? u.ahead + begin + rows : keys;
        load(u.q + begin * u.q_row + head * u.width, u.q_row, q, width_padded, rows, u.width);
        SmallGemm()(
            w, rows, padded(used), u.width, q, width_padded, int64_t{1}, kt, keys_padded, score, keys_padded, false);
        for (int64_t r = 0; r < rows; ++r)
          total[r] = softmax(score + r * keys_padded,
                             u.causal ? u.ahead + begin + r + 1 : keys,
                             used,
                             u.scale,
                             u.log_sum + head * u.log_sum_row + begin + r);
        SmallGemm()(
            w, rows, width_padded, used, score, keys_padded, int64_t{1}, v, width_padded, out, width_padded, false);
        for (int64_t r = 0; r < rows; ++r) {
          const A inverse = A(1) / total[r];
          T* to = u.out + (begin + r) * u.out_row + head * u.width;
#pragma omp simd
          for (int64_t i = 0; i < u.width; ++i) to[i] = static_cast<T>(out[r * width_padded + i] * inverse);
        }
      }
    }
  }

 private:
  /// score[0, valid) -> exp(scale * score - max), [valid, used) -> 0; returns the sum.
  template <class A>
  static HANOK_SIMD_BODY A softmax(A* score, int64_t valid, int64_t used, A scale, A* log_sum) {
    A largest = score[0];
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < valid; ++i) largest = score[i] > largest ? score[i] : largest;
    A total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < valid; ++i) {
      score[i] = simd::exp(scale * (score[i] - largest));
      total += score[i];
    }
    for (int64_t i = valid; i < used; ++i) score[i] = 0;
    *log_sum = scale * largest + std::log(total);
    return total;
  }
};

/// All pieces that share the keys behind `k`; other pointers are at row 0. G: of gradients, which are added to where
/// `add` says so.
template <class T, class G, class A>
struct BackwardUnit {
  const T *dout, *out;
  int64_t out_row;
  const T *q, *k, *v;
  G *dq, *dk, *dv;
  int64_t q_row, kv_row, dq_row, dkv_row;
  const A* log_sum;
  int64_t log_sum_row, group, width, length;
  const AttentionPiece *first_piece, *last_piece;
  bool causal, add;
  A scale;
  A* scratch;
};

template <class A>
int64_t backward_scratch(int64_t length, int64_t width) {
  return 2 * width * padded(length) + 3 * length * padded(width) +
         kQueryBlock * (padded(width) * 3 + padded(length) * 2 + 1) + 16 * kGemmColumns;
}

// With p = exp(scale * s - log_sum), delta = sum_i dout_i out_i:
//   dv += p^T dout,  dp = dout v^T,  ds = scale * p * (dp - delta),  dq = ds k,  dk += ds^T q.
struct Backward {
  template <class W, class T, class G, class A>
  HANOK_SIMD_BODY void operator()(W w, BackwardUnit<T, G, A> u) const {
    const int64_t all_keys = u.length, keys_padded = padded(all_keys), width_padded = padded(u.width), one = 1;
    Scratch<A> scratch{u.scratch};
    A* kt = scratch.take(u.width * keys_padded);
    A* vt = scratch.take(u.width * keys_padded);
    A* k = scratch.take(all_keys * width_padded);
    A* dk = scratch.take(all_keys * width_padded);
    A* dv = scratch.take(all_keys * width_padded);
    A* q = scratch.take(kQueryBlock * width_padded);
    A* dout = scratch.take(kQueryBlock * width_padded);
    A* dq = scratch.take(kQueryBlock * width_padded);
    A* delta = scratch.take(kQueryBlock);
    A* p = scratch.take(kQueryBlock * keys_padded);
    A* dp = scratch.take(kQueryBlock * keys_padded);
    load_transposed(u.k, u.kv_row, kt, keys_padded, all_keys, u.width);
    load_transposed(u.v, u.kv_row, vt, keys_padded, all_keys, u.width);
    load(u.k, u.kv_row, k, width_padded, all_keys, u.width);
#pragma omp simd
    for (int64_t i = 0; i < all_keys * width_padded; ++i) dk[i] = dv[i] = 0;
    for (int64_t head = 0; head < u.group; ++head) {
      for (const AttentionPiece* piece = u.first_piece; piece < u.last_piece; ++piece) {
        const int64_t keys = piece->k_end - piece->k_begin, ahead = keys - (piece->q_end - piece->q_begin);
        for (int64_t begin = piece->q_begin; begin < piece->q_end; begin += kQueryBlock) {
          const int64_t rows = std::min(kQueryBlock, piece->q_end - begin), shift = head * u.width;
          const int64_t before = ahead + begin - piece->q_begin;  // keys that the query before this block sees
          const int64_t used = u.causal ? before + rows : keys;
          load(u.q + begin * u.q_row + shift, u.q_row, q, width_padded, rows, u.width);
          load(u.dout + begin * u.out_row + shift, u.out_row, dout, width_padded, rows, u.width);
          load(u.out + begin * u.out_row + shift, u.out_row, dq, width_padded, rows, u.width);
          for (int64_t r = 0; r < rows; ++r)
            delta[r] = dot(dout + r * width_padded, dq + r * width_padded, width_padded);
          SmallGemm()(w, rows, padded(used), u.width, q, width_padded, one, kt, keys_padded, p, keys_padded, false);
          SmallGemm()(w, rows, padded(used), u.width, dout, width_padded, one, vt, keys_padded, dp, keys_padded, false);
          for (int64_t r = 0; r < rows; ++r)
            score_gradient(p + r * keys_padded,
                           dp + r * keys_padded,
                           u.causal ? before + r + 1 : keys,
                           used,
                           u.scale,
                           u.log_sum[head * u.log_sum_row + begin + r],
                           delta[r]);
          SmallGemm()(w, used, width_padded, rows, p, one, keys_padded, dout, width_padded, dv, width_padded, true);
          SmallGemm()(w, used, width_padded, rows, dp, one, keys_padded, q, width_padded, dk, width_padded, true);
          SmallGemm()(w, rows, width_padded, used, dp, keys_padded, one, k, width_padded, dq, width_padded, false);
          store(dq, width_padded, u.dq + begin * u.dq_row + shift, u.dq_row, rows, u.width, u.add);
        }
      }
    }
    store(dk, width_padded, u.dk, u.dkv_row, all_keys, u.width, u.add);
    store(dv, width_padded, u.dv, u.dkv_row, all_keys, u.width, u.add);
  }

 private:
  template <class G, class A>
  static HANOK_SIMD_BODY void store(
      const A* from, int64_t from_row, G* to, int64_t to_row, int64_t rows, int64_t width, bool add) {
    for (int64_t r = 0; r < rows; ++r) {
      if (add) {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i)
          to[r * to_row + i] = static_cast<G>(static_cast<A>(to[r * to_row + i]) + from[r * from_row + i]);
      } else {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) to[r * to_row + i] = static_cast<G>(from[r * from_row + i]);
      }
    }
  }
  template <class A>
  static HANOK_SIMD_BODY A dot(const A* a, const A* b, int64_t width) {
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += a[i] * b[i];
    return sum;
  }
  /// p: scores -> probabilities; dp -> gradient of the unscaled scores. Both are 0 beyond `valid`.
  template <class A>
  static HANOK_SIMD_BODY void score_gradient(A* p, A* dp, int64_t valid, int64_t used, A scale, A log_sum, A delta) {
#pragma omp simd
    for (int64_t i = 0; i < valid; ++i) {
      p[i] = simd::exp(scale * p[i] - log_sum);
      dp[i] = scale * p[i] * (dp[i] - delta);
    }
    for (int64_t i = valid; i < used; ++i) p[i] = dp[i] = 0;
  }
};

/// Views of rows that may be strided.
struct Operands {
  Tensor q, k, v;
};

Operands parts_of(const Tensor& qkv, const Sizes& sizes) {
  const int64_t q = sizes.heads * sizes.width, kv = sizes.kv_heads * sizes.width;
  return {qkv.narrow(1, 0, q), qkv.narrow(1, q, kv), qkv.narrow(1, q + kv, kv)};
}

Operands parts_of(const Tensor& q, const Tensor& kv, const Sizes& sizes) {
  const int64_t width = sizes.kv_heads * sizes.width;
  return {q, kv.narrow(1, 0, width), kv.narrow(1, width, width)};
}

/// Every segment against itself.
std::vector<AttentionPiece> pieces_of(const Tensor& starts) {
  const int32_t* bounds = starts.const_data_ptr<int32_t>();
  std::vector<AttentionPiece> pieces;
  for (int64_t s = 0; s + 1 < starts.size(0); ++s)
    if (bounds[s] < bounds[s + 1]) pieces.push_back({bounds[s], bounds[s + 1], bounds[s], bounds[s + 1]});
  return pieces;
}

/// Pieces that share keys, which those of the last one include.
struct KeyGroup {
  const AttentionPiece *first, *last;
  int64_t begin() const { return first->k_begin; }
  int64_t keys() const { return last[-1].k_end - first->k_begin; }
};

std::vector<KeyGroup> groups_of(const std::vector<AttentionPiece>& pieces) {
  std::vector<KeyGroup> groups;
  for (const AttentionPiece& piece : pieces) {
    if (groups.empty() || groups.back().begin() != piece.k_begin) groups.push_back({&piece, &piece});
    groups.back().last = &piece + 1;
  }
  return groups;
}

void run_forward(const Operands& in,
                 const std::vector<AttentionPiece>& pieces,
                 bool causal,
                 const Sizes& sizes,
                 Tensor& out,
                 Tensor& log_sum) {
  struct Stretch {
    const AttentionPiece* piece;
    int64_t first, last;
  };
  std::vector<Stretch> stretches;
  int64_t longest = 0;
  for (const AttentionPiece& piece : pieces) {
    longest = std::max(longest, piece.keys());
    for (int64_t first = 0; first < piece.queries(); first += kQueryStretch)
      stretches.push_back({&piece, first, std::min(piece.queries(), first + kQueryStretch)});
  }
  dispatch_float(in.q.scalar_type(), "attention", [&](auto tag) {
    using T = decltype(tag);
    using A = Accumulate<T>;
    const T *q = in.q.const_data_ptr<T>(), *k = in.k.const_data_ptr<T>(), *v = in.v.const_data_ptr<T>();
    T* out_data = out.mutable_data_ptr<T>();
    A* log_sum_data = log_sum.mutable_data_ptr<A>();
    const int64_t units = static_cast<int64_t>(stretches.size()) * sizes.kv_heads, rows = in.q.size(0);
    for_each_unit<A>(units, forward_scratch<A>(longest, sizes.width), [&](int64_t unit, A* scratch) {
      const Stretch& stretch = stretches[unit / sizes.kv_heads];
      const AttentionPiece& piece = *stretch.piece;
      const int64_t kv_head = unit % sizes.kv_heads, head = kv_head * sizes.group();
      const int64_t key = piece.k_begin * in.k.stride(0) + kv_head * sizes.width;
      simd::call(Forward{},
                 ForwardUnit<T, A>{.q = q + piece.q_begin * in.q.stride(0) + head * sizes.width,
                                   .k = k + key,
                                   .v = v + key,
                                   .q_row = in.q.stride(0),
                                   .kv_row = in.k.stride(0),
                                   .out = out_data + piece.q_begin * out.stride(0) + head * sizes.width,
                                   .out_row = out.stride(0),
                                   .log_sum = log_sum_data + head * rows + piece.q_begin,
                                   .log_sum_row = rows,
                                   .group = sizes.group(),
                                   .width = sizes.width,
                                   .first = stretch.first,
                                   .last = stretch.last,
                                   .length = piece.keys(),
                                   .ahead = piece.keys() - piece.queries(),
                                   .causal = causal,
                                   .scale = A(1) / std::sqrt(static_cast<A>(sizes.width)),
                                   .scratch = scratch});
    });
  });
}

struct Result {
  const Tensor &dout, &out, &log_sum;
};

/// G: dtype of the gradients. They are added to what `d` holds, or replace it.
template <class T, class G>
void run_backward(const Result& result,
                  const Operands& in,
                  const std::vector<AttentionPiece>& pieces,
                  bool causal,
                  const Sizes& sizes,
                  const Operands& d,
                  bool add) {
  using A = Accumulate<T>;
  const std::vector<KeyGroup> groups = groups_of(pieces);
  int64_t longest = 0;
  for (const KeyGroup& group : groups) longest = std::max(longest, group.keys());
  const T *q = in.q.const_data_ptr<T>(), *k = in.k.const_data_ptr<T>(), *v = in.v.const_data_ptr<T>();
  const T *dout = result.dout.const_data_ptr<T>(), *out = result.out.const_data_ptr<T>();
  const A* log_sum = result.log_sum.const_data_ptr<A>();
  G *dq = d.q.mutable_data_ptr<G>(), *dk = d.k.mutable_data_ptr<G>(), *dv = d.v.mutable_data_ptr<G>();
  const int64_t rows = in.q.size(0), units = static_cast<int64_t>(groups.size()) * sizes.kv_heads;
  for_each_unit<A>(units, backward_scratch<A>(longest, sizes.width), [&](int64_t unit, A* scratch) {
    const KeyGroup& group = groups[unit / sizes.kv_heads];
    const int64_t kv_head = unit % sizes.kv_heads, head = kv_head * sizes.group();
    const int64_t key = group.begin() * in.k.stride(0) + kv_head * sizes.width;
    const int64_t dkey = group.begin() * d.k.stride(0) + kv_head * sizes.width;
    simd::call(Backward{},
               BackwardUnit<T, G, A>{.dout = dout + head * sizes.width,
                                     .out = out + head * sizes.width,
                                     .out_row = sizes.heads * sizes.width,
                                     .q = q + head * sizes.width,
                                     .k = k + key,
                                     .v = v + key,
                                     .dq = dq + head * sizes.width,
                                     .dk = dk + dkey,
                                     .dv = dv + dkey,
                                     .q_row = in.q.stride(0),
                                     .kv_row = in.k.stride(0),
                                     .dq_row = d.q.stride(0),
                                     .dkv_row = d.k.stride(0),
                                     .log_sum = log_sum + head * rows,
                                     .log_sum_row = rows,
                                     .group = sizes.group(),
                                     .width = sizes.width,
                                     .length = group.keys(),
                                     .first_piece = group.first,
                                     .last_piece = group.last,
                                     .causal = causal,
                                     .add = add,
                                     .scale = A(1) / std::sqrt(static_cast<A>(sizes.width)),
                                     .scratch = scratch});
  });
}

}  // namespace

std::pair<Tensor, Tensor> forward(const Tensor& qkv, const Tensor& starts, const Sizes& sizes) {
  const int64_t rows = qkv.size(0);
  Tensor out = at::empty({rows, sizes.heads * sizes.width}, qkv.options());
  Tensor log_sum = at::empty({sizes.heads, rows}, qkv.options().dtype(accumulate_type(qkv.scalar_type())));
  run_forward(parts_of(qkv, sizes), pieces_of(starts), sizes.causal, sizes, out, log_sum);
  return {out, log_sum};
}

Tensor backward(const Tensor& dout,
                const Tensor& qkv,
                const Tensor& out,
                const Tensor& log_sum,
                const Tensor& starts,
                const Sizes& sizes) {
  Tensor dqkv = at::empty_like(qkv);
  dispatch_float(qkv.scalar_type(), "attention", [&](auto tag) {
    using T = decltype(tag);
    run_backward<T, T>({dout, out, log_sum},
                       parts_of(qkv, sizes),
                       pieces_of(starts),
                       sizes.causal,
                       sizes,
                       parts_of(dqkv, sizes),
                       /*add=*/false);
  });
  return dqkv;
}

PartialAttention attend(const Tensor& q, const Tensor& kv, const AttentionPieces& pieces, const Sizes& sizes) {
  PartialAttention part = attention_to_nothing(q, sizes);
  run_forward(parts_of(q, kv, sizes), pieces.list, pieces.causal, sizes, part.out_TX, part.log_sum_NT);
  return part;
}

void attend_backward(const Tensor& dout,
                     const Tensor& q,
                     const Tensor& kv,
                     const PartialAttention& whole,
                     const AttentionPieces& pieces,
                     const Sizes& sizes,
                     Tensor& dq,
                     Tensor& dkv) {
  dispatch_float(q.scalar_type(), "attention", [&](auto tag) {
    using T = decltype(tag);
    run_backward<T, Accumulate<T>>({dout, whole.out_TX, whole.log_sum_NT},
                                   parts_of(q, kv, sizes),
                                   pieces.list,
                                   pieces.causal,
                                   sizes,
                                   parts_of(dq, dkv, sizes),
                                   /*add=*/true);
  });
}

}  // namespace hanok::attention_cpu
