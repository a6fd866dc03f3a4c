#include "model/kernels/vocab_softmax.h"

#include <ATen/Parallel.h>

#include <limits>

#include "base/cuda/call.h"
#include "model/kernels/add_product.h"
#include "model/kernels/dispatch.h"
#include "model/kernels/simd.h"
#include "model/kernels/vocab_softmax_cuda.h"

namespace hanok {
namespace {

/// Columns of logits at a time: on the CPU a block stays in the cache, on a GPU it fills the device (256 MB of bf16)
/// and its rows begin where matrix products like them to.
int64_t block_columns(int64_t rows, int64_t vocab, bool cpu) {
  const int64_t elements = cpu ? int64_t{1} << 20 : int64_t{1} << 27;
  const int64_t columns = elements / std::max<int64_t>(1, rows);
  return std::min(std::max<int64_t>(1, vocab), std::max<int64_t>(512, cpu ? columns : columns / 256 * 256));
}

// Running maximum and sum of a row; a block whose maximum is larger rescales the sum so far.
struct Stats {
  template <class W, class A>
  HANOK_SIMD_BODY void operator()(W,
                                  const A* z,
                                  int64_t columns,
                                  int64_t rows,
                                  int64_t first,
                                  const int64_t* target,
                                  A* max,
                                  A* sum,
                                  A* target_logit) const {
    for (int64_t row = 0; row < rows; ++row, z += columns) {
      A largest = max[row];
#pragma omp simd reduction(max : largest)
      for (int64_t i = 0; i < columns; ++i) largest = z[i] > largest ? z[i] : largest;
      A total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < columns; ++i) total += simd::exp(z[i] - largest);
      sum[row] = sum[row] * std::exp(max[row] - largest) + total;
      max[row] = largest;
      const int64_t here = target[row] - first;
      if (here >= 0 && here < columns) target_logit[row] = z[here];
    }
  }
};

struct Gradient {
  template <class W, class A>
  HANOK_SIMD_BODY void operator()(W,
                                  A* z,
                                  int64_t columns,
                                  int64_t rows,
                                  int64_t first,
                                  const int64_t* target,
                                  const A* log_sum,
                                  const A* g) const {
    for (int64_t row = 0; row < rows; ++row, z += columns) {
      const A shift = log_sum[row], scale = g[row];
#pragma omp simd
      for (int64_t i = 0; i < columns; ++i) z[i] = scale * simd::exp(z[i] - shift);
      const int64_t here = target[row] - first;
      if (here >= 0 && here < columns) z[here] -= scale;
    }
  }
};

/// f(first, columns, z_NC) for every block of columns, z the caller's to overwrite: on the CPU in the accumulation
/// dtype, on a GPU as the product leaves it, because its kernels widen what they read.
template <class F>
void for_each_block(const Tensor& y, const Tensor& weight, const F& f) {
  const int64_t vocab = weight.size(0), block = block_columns(y.size(0), vocab, y.is_cpu());
  for (int64_t first = 0; first < vocab; first += block) {
    const int64_t columns = std::min(block, vocab - first);
    const Tensor z = at::mm(y, weight.narrow(0, first, columns).t());
    f(first, columns, z.is_cpu() ? z.to(accumulate_type(y.scalar_type())) : z);
  }
}

void update_stats(const Tensor& z, int64_t first, const Tensor& target, VocabStats& stats) {
  const int64_t rows = z.size(0), columns = z.size(1);
  if (!z.is_cpu()) {
    launch(VocabStatsUpdate{.call = cuda_call(z, "vocab_softmax"),
                            .z = data_of(z),
                            .target = target.const_data_ptr<int64_t>(),
                            .max = mutable_data_of(stats.max_N),
                            .sum = mutable_data_of(stats.sum_N),
                            .target_logit = mutable_data_of(stats.target_N),
                            .rows = rows,
                            .columns = columns,
                            .first = first});
    return;
  }
  dispatch_float(z.scalar_type(), "vocab_softmax", [&](auto tag) {
    using A = Accumulate<decltype(tag)>;
    const A* z_data = z.const_data_ptr<A>();
    const int64_t* target_data = target.const_data_ptr<int64_t>();
    A *max = stats.max_N.mutable_data_ptr<A>(), *sum = stats.sum_N.mutable_data_ptr<A>();
    A* logit = stats.target_N.mutable_data_ptr<A>();
    at::parallel_for(0, rows, row_grain(columns), [&](int64_t begin, int64_t end) {
      simd::call(Stats{},
                 z_data + begin * columns,
                 columns,
                 end - begin,
                 first,
                 target_data + begin,
                 max + begin,
                 sum + begin,
                 logit + begin);
    });
  });
}

void turn_into_gradient(Tensor& z, int64_t first, const Tensor& target, const Tensor& log_sum, const Tensor& g) {
  const int64_t rows = z.size(0), columns = z.size(1);
  if (!z.is_cpu()) {
    launch(VocabGradient{.call = cuda_call(z, "vocab_softmax"),
                         .z = mutable_data_of(z),
                         .target = target.const_data_ptr<int64_t>(),
                         .log_sum = data_of(log_sum),
                         .g = data_of(g),
                         .rows = rows,
                         .columns = columns,
                         .first = first});
    return;
  }
  dispatch_float(z.scalar_type(), "vocab_softmax", [&](auto tag) {
    using A = Accumulate<decltype(tag)>;
    A* z_data = z.mutable_data_ptr<A>();
    const int64_t* target_data = target.const_data_ptr<int64_t>();
    const A *log_sum_data = log_sum.const_data_ptr<A>(), *g_data = g.const_data_ptr<A>();
    at::parallel_for(0, rows, row_grain(columns), [&](int64_t begin, int64_t end) {
      simd::call(Gradient{},
                 z_data + begin * columns,
                 columns,
                 end - begin,
                 first,
                 target_data + begin,
                 log_sum_data + begin,
                 g_data + begin);
    });
  });
}

}  // namespace

VocabStats vocab_stats(const Tensor& y_ND, const Tensor& weight_VD, const Tensor& target_N) {
  const auto options = y_ND.options().dtype(accumulate_type(y_ND.scalar_type()));
  const int64_t rows = y_ND.size(0);
  VocabStats stats{.max_N = at::full({rows}, -std::numeric_limits<double>::infinity(), options),
                   .sum_N = at::zeros({rows}, options),
                   .target_N = at::zeros({rows}, options)};
  if (rows == 0) return stats;
  const Tensor target = target_N.contiguous();
  for_each_block(
      y_ND, weight_VD, [&](int64_t first, int64_t, const Tensor& z) { update_stats(z, first, target, stats); });
  return stats;
}

VocabGrads vocab_grads(const Tensor& y_ND,
                       const Tensor& weight_VD,
                       const Tensor& target_N,
                       const Tensor& log_sum_N,
                       const Tensor& g_N,
                       bool needs_dweight,
                       Tensor add_to_VD,
                       bool add_to_is_empty) {
  const auto dtype = y_ND.scalar_type();
  Tensor dy = at::zeros(y_ND.sizes(), y_ND.options().dtype(accumulate_type(dtype)));
  VocabGrads grads;
  const bool adds = add_to_VD.defined();
  if (adds && add_to_is_empty && y_ND.size(0) == 0) add_to_VD.zero_();
  if (needs_dweight && !adds) grads.dweight_VD = y_ND.size(0) ? at::empty_like(weight_VD) : at::zeros_like(weight_VD);
  if (y_ND.size(0) > 0) {
    const Tensor target = target_N.contiguous(), log_sum = log_sum_N.contiguous(), g = g_N.contiguous();
    for_each_block(y_ND, weight_VD, [&](int64_t first, int64_t columns, Tensor z) {
      turn_into_gradient(z, first, target, log_sum, g);
      const Tensor dz = z.to(dtype), weight = weight_VD.narrow(0, first, columns);
      if (dy.scalar_type() == dtype)
        dy.addmm_(dz, weight);
      else
        dy.add_(at::mm(dz, weight));
      if (!needs_dweight) return;
      Tensor rows = (adds ? add_to_VD : grads.dweight_VD).narrow(0, first, columns);
      if (adds && !add_to_is_empty)
        add_product(rows, dz.t(), y_ND);
      else if (adds)
        set_product(rows, dz.t(), y_ND);
      else
        at::mm_out(rows, dz.t(), y_ND);
    });
  }
  grads.dy_ND = dy.to(dtype);
  return grads;
}

}  // namespace hanok
