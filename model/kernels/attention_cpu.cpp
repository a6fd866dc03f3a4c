// One unit of work is one key/value head of one segment (forward: and a stretch of its query rows). Its operands are
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

/// Rows [first, last) of one head against the keys of its segment; pointers are at the segment's first row.
template <class T, class A>
struct ForwardUnit {
  const T *q, *k, *v;
  int64_t in_row;  // elements from row to row of qkv
  T* out;
  int64_t out_row;
  A* log_sum;  // of query head 0; the next head is log_sum_row further
  int64_t log_sum_row, group, width, first, last, length;
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
    const int64_t keys = u.causal ? u.last : u.length, keys_padded = padded(keys), width_padded = padded(u.width);
    Scratch<A> scratch{u.scratch};
    A* kt = scratch.take(u.width * keys_padded);
    A* v = scratch.take(keys * width_padded);
    A* q = scratch.take(kQueryBlock * width_padded);
    A* score = scratch.take(kQueryBlock * keys_padded);
    A* out = scratch.take(kQueryBlock * width_padded);
    A* total = scratch.take(kQueryBlock);
    load_transposed(u.k, u.in_row, kt, keys_padded, keys, u.width);
    load(u.v, u.in_row, v, width_padded, keys, u.width);
    for (int64_t head = 0; head < u.group; ++head) {
      for (int64_t begin = u.first; begin < u.last; begin += kQueryBlock) {
        const int64_t rows = std::min(kQueryBlock, u.last - begin);
        const int64_t used = u.causal ? begin + rows : keys;
        load(u.q + begin * u.in_row + head * u.width, u.in_row, q, width_padded, rows, u.width);
        SmallGemm()(
            w, rows, padded(used), u.width, q, width_padded, int64_t{1}, kt, keys_padded, score, keys_padded, false);
        for (int64_t r = 0; r < rows; ++r)
          total[r] = softmax(score + r * keys_padded,
                             u.causal ? begin + r + 1 : keys,
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

template <class T, class A>
struct BackwardUnit {
  const T *dout, *out;
  int64_t out_row;
  const T *q, *k, *v;
  T *dq, *dk, *dv;
  int64_t in_row;
  const A* log_sum;
  int64_t log_sum_row, group, width, length;
  bool causal;
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
  template <class W, class T, class A>
  HANOK_SIMD_BODY void operator()(W w, BackwardUnit<T, A> u) const {
    const int64_t keys = u.length, keys_padded = padded(keys), width_padded = padded(u.width), one = 1;
    Scratch<A> scratch{u.scratch};
    A* kt = scratch.take(u.width * keys_padded);
    A* vt = scratch.take(u.width * keys_padded);
    A* k = scratch.take(keys * width_padded);
    A* dk = scratch.take(keys * width_padded);
    A* dv = scratch.take(keys * width_padded);
    A* q = scratch.take(kQueryBlock * width_padded);
    A* dout = scratch.take(kQueryBlock * width_padded);
    A* dq = scratch.take(kQueryBlock * width_padded);
    A* delta = scratch.take(kQueryBlock);
    A* p = scratch.take(kQueryBlock * keys_padded);
    A* dp = scratch.take(kQueryBlock * keys_padded);
    load_transposed(u.k, u.in_row, kt, keys_padded, keys, u.width);
    load_transposed(u.v, u.in_row, vt, keys_padded, keys, u.width);
    load(u.k, u.in_row, k, width_padded, keys, u.width);
#pragma omp simd
    for (int64_t i = 0; i < keys * width_padded; ++i) dk[i] = dv[i] = 0;
    for (int64_t head = 0; head < u.group; ++head) {
      for (int64_t begin = 0; begin < u.length; begin += kQueryBlock) {
        const int64_t rows = std::min(kQueryBlock, u.length - begin), used = u.causal ? begin + rows : keys;
        const int64_t shift = head * u.width;
        load(u.q + begin * u.in_row + shift, u.in_row, q, width_padded, rows, u.width);
        load(u.dout + begin * u.out_row + shift, u.out_row, dout, width_padded, rows, u.width);
        load(u.out + begin * u.out_row + shift, u.out_row, dq, width_padded, rows, u.width);
        for (int64_t r = 0; r < rows; ++r) delta[r] = dot(dout + r * width_padded, dq + r * width_padded, width_padded);
        SmallGemm()(w, rows, padded(used), u.width, q, width_padded, one, kt, keys_padded, p, keys_padded, false);
        SmallGemm()(w, rows, padded(used), u.width, dout, width_padded, one, vt, keys_padded, dp, keys_padded, false);
        for (int64_t r = 0; r < rows; ++r)
          score_gradient(p + r * keys_padded,
                         dp + r * keys_padded,
                         u.causal ? begin + r + 1 : keys,
                         used,
                         u.scale,
                         u.log_sum[head * u.log_sum_row + begin + r],
                         delta[r]);
        SmallGemm()(w, used, width_padded, rows, p, one, keys_padded, dout, width_padded, dv, width_padded, true);
        SmallGemm()(w, used, width_padded, rows, dp, one, keys_padded, q, width_padded, dk, width_padded, true);
        SmallGemm()(w, rows, width_padded, used, dp, keys_padded, one, k, width_padded, dq, width_padded, false);
        store(dq, width_padded, u.dq + begin * u.in_row + shift, u.in_row, rows, u.width);
      }
    }
    store(dk, width_padded, u.dk, u.in_row, keys, u.width);
    store(dv, width_padded, u.dv, u.in_row, keys, u.width);
  }

 private:
  template <class T, class A>
  static HANOK_SIMD_BODY void store(
      const A* from, int64_t from_row, T* to, int64_t to_row, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; ++r) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) to[r * to_row + i] = static_cast<T>(from[r * from_row + i]);
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

int64_t longest_segment(const int32_t* starts, int64_t count) {
  int64_t longest = 0;
  for (int64_t s = 0; s < count; ++s) longest = std::max<int64_t>(longest, starts[s + 1] - starts[s]);
  return longest;
}

}  // namespace

std::pair<Tensor, Tensor> forward(const Tensor& qkv, const Tensor& starts_tensor, const Sizes& sizes) {
  const int64_t rows = qkv.size(0), count = starts_tensor.size(0) - 1;
  const int32_t* starts = starts_tensor.const_data_ptr<int32_t>();
  Tensor out = at::empty({rows, sizes.heads * sizes.width}, qkv.options());
  Tensor log_sum = at::empty({sizes.heads, rows}, qkv.options().dtype(accumulate_type(qkv.scalar_type())));
  struct Stretch {
    int64_t segment, first, last;
  };
  std::vector<Stretch> stretches;
  for (int64_t s = 0; s < count; ++s)
    for (int64_t first = 0, length = starts[s + 1] - starts[s]; first < length; first += kQueryStretch)
      stretches.push_back({s, first, std::min(length, first + kQueryStretch)});
  dispatch_float(qkv.scalar_type(), "attention", [&](auto tag) {
    using T = decltype(tag);
    using A = Accumulate<T>;
    const T* qkv_data = qkv.const_data_ptr<T>();
    T* out_data = out.mutable_data_ptr<T>();
    A* log_sum_data = log_sum.mutable_data_ptr<A>();
    const int64_t units = static_cast<int64_t>(stretches.size()) * sizes.kv_heads;
    const int64_t scratch_size = forward_scratch<A>(longest_segment(starts, count), sizes.width);
    for_each_unit<A>(units, scratch_size, [&](int64_t unit, A* scratch) {
      const Stretch& stretch = stretches[unit / sizes.kv_heads];
      const int64_t kv_head = unit % sizes.kv_heads, start = starts[stretch.segment], head = kv_head * sizes.group();
      const T* row = qkv_data + start * sizes.row();
      simd::call(Forward{},
                 ForwardUnit<T, A>{.q = row + head * sizes.width,
                                   .k = row + (sizes.heads + kv_head) * sizes.width,
                                   .v = row + (sizes.heads + sizes.kv_heads + kv_head) * sizes.width,
                                   .in_row = sizes.row(),
                                   .out = out_data + start * sizes.heads * sizes.width + head * sizes.width,
                                   .out_row = sizes.heads * sizes.width,
                                   .log_sum = log_sum_data + head * rows + start,
                                   .log_sum_row = rows,
                                   .group = sizes.group(),
                                   .width = sizes.width,
                                   .first = stretch.first,
                                   .last = stretch.last,
                                   .length = starts[stretch.segment + 1] - start,
                                   .causal = sizes.causal,
                                   .scale = A(1) / std::sqrt(static_cast<A>(sizes.width)),
                                   .scratch = scratch});
    });
  });
  return {out, log_sum};
}

Tensor backward(const Tensor& dout,
                const Tensor& qkv,
                const Tensor& out,
                const Tensor& log_sum,
                const Tensor& starts_tensor,
                const Sizes& sizes) {
  const int64_t rows = qkv.size(0), count = starts_tensor.size(0) - 1;
  const int32_t* starts = starts_tensor.const_data_ptr<int32_t>();
  Tensor dqkv = at::empty_like(qkv);
  dispatch_float(qkv.scalar_type(), "attention", [&](auto tag) {
    using T = decltype(tag);
    using A = Accumulate<T>;
    const T *dout_data = dout.const_data_ptr<T>(), *out_data = out.const_data_ptr<T>();
    const T* qkv_data = qkv.const_data_ptr<T>();
    const A* log_sum_data = log_sum.const_data_ptr<A>();
    T* dqkv_data = dqkv.mutable_data_ptr<T>();
    const int64_t scratch_size = backward_scratch<A>(longest_segment(starts, count), sizes.width);
    for_each_unit<A>(count * sizes.kv_heads, scratch_size, [&](int64_t unit, A* scratch) {
      const int64_t segment = unit / sizes.kv_heads, kv_head = unit % sizes.kv_heads, start = starts[segment];
      const int64_t head = kv_head * sizes.group(), out_row = sizes.heads * sizes.width;
      const int64_t q = start * sizes.row() + head * sizes.width;
      const int64_t k = start * sizes.row() + (sizes.heads + kv_head) * sizes.width;
      const int64_t v = k + sizes.kv_heads * sizes.width;
      simd::call(Backward{},
                 BackwardUnit<T, A>{.dout = dout_data + start * out_row + head * sizes.width,
                                    .out = out_data + start * out_row + head * sizes.width,
                                    .out_row = out_row,
                                    .q = qkv_data + q,
                                    .k = qkv_data + k,
                                    .v = qkv_data + v,
                                    .dq = dqkv_data + q,
                                    .dk = dqkv_data + k,
                                    .dv = dqkv_data + v,
                                    .in_row = sizes.row(),
                                    .log_sum = log_sum_data + head * rows + start,
                                    .log_sum_row = rows,
                                    .group = sizes.group(),
                                    .width = sizes.width,
                                    .length = starts[segment + 1] - start,
                                    .causal = sizes.causal,
                                    .scale = A(1) / std::sqrt(static_cast<A>(sizes.width)),
                                    .scratch = scratch});
    });
  });
  return dqkv;
}

}  // namespace hanok::attention_cpu
