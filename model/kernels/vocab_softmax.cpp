#include "model/kernels/vocab_softmax.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>

#include "base/cuda/call.h"
#include "model/kernels/dispatch.h"
#include "model/kernels/simd.h"
#include "model/kernels/vocab_softmax_cuda.h"

namespace hanok {
namespace {

struct Stats {
  template <class W, class A>
  HANOK_SIMD_BODY void operator()(
      W, const A* z, int64_t columns, int64_t rows, const int64_t* target, A* max, A* sum, A* target_logit) const {
    for (int64_t row = 0; row < rows; ++row, z += columns) {
      A largest = -std::numeric_limits<A>::infinity();
#pragma omp simd reduction(max : largest)
      for (int64_t i = 0; i < columns; ++i) largest = z[i] > largest ? z[i] : largest;
      A total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < columns; ++i) total += simd::exp(z[i] - largest);
      sum[row] = total;
      max[row] = largest;
      const int64_t here = target[row];
      target_logit[row] = here >= 0 && here < columns ? z[here] : 0;
    }
  }
};

struct Gradient {
  template <class W, class A>
  HANOK_SIMD_BODY void operator()(
      W, A* z, int64_t columns, int64_t rows, const int64_t* target, const A* log_sum, const A* g) const {
    for (int64_t row = 0; row < rows; ++row, z += columns) {
      const A shift = log_sum[row], scale = g[row];
#pragma omp simd
      for (int64_t i = 0; i < columns; ++i) z[i] = scale * simd::exp(z[i] - shift);
      const int64_t here = target[row];
      if (here >= 0 && here < columns) z[here] -= scale;
    }
  }
};

}  // namespace

int64_t rows_of_logits(int64_t vocab, int64_t shards, int64_t width, bool weight_trains, bool on_gpu) {
  constexpr int64_t kLeast = 256, kHide = 1024, kMost = 4096;
  const int64_t fill =
      (on_gpu ? int64_t{1} << 27 : int64_t{1} << 20) / std::max<int64_t>(1, (vocab + shards - 1) / shards);
  const int64_t hide = on_gpu && weight_trains ? std::clamp(width, kHide, kMost) : 0;
  return std::max({kLeast, fill / kLeast * kLeast, hide / kLeast * kLeast});
}

Tensor vocab_logits(const Tensor& y_ND, const Tensor& weight_VD) {
  const Tensor z = at::mm(y_ND, weight_VD.t());
  return z.is_cpu() ? z.to(accumulate_type(y_ND.scalar_type())) : z;
}

VocabStats vocab_stats(const Tensor& z_NV, const Tensor& target_N) {
  const auto options = z_NV.options().dtype(accumulate_type(z_NV.scalar_type()));
  const int64_t rows = z_NV.size(0), columns = z_NV.size(1);
  if (columns == 0)
    return {.max_N = at::full({rows}, -std::numeric_limits<double>::infinity(), options),
            .sum_N = at::zeros({rows}, options),
            .target_N = at::zeros({rows}, options)};
  VocabStats stats{
      .max_N = at::empty({rows}, options), .sum_N = at::empty({rows}, options), .target_N = at::empty({rows}, options)};
  const Tensor target = target_N.contiguous();
  if (!z_NV.is_cpu()) {
    launch(VocabRowStats{.call = cuda_call(z_NV, "vocab_softmax"),
                         .z = data_of(z_NV),
                         .target = target.const_data_ptr<int64_t>(),
                         .max = mutable_data_of(stats.max_N),
                         .sum = mutable_data_of(stats.sum_N),
                         .target_logit = mutable_data_of(stats.target_N),
                         .rows = rows,
                         .columns = columns});
    return stats;
  }
  dispatch_float(z_NV.scalar_type(), "vocab_softmax", [&](auto tag) {
    using A = Accumulate<decltype(tag)>;
    const A* z_data = z_NV.const_data_ptr<A>();
    const int64_t* target_data = target.const_data_ptr<int64_t>();
    A *max = stats.max_N.mutable_data_ptr<A>(), *sum = stats.sum_N.mutable_data_ptr<A>();
    A* logit = stats.target_N.mutable_data_ptr<A>();
    at::parallel_for(0, rows, row_grain(columns), [&](int64_t begin, int64_t end) {
      simd::call(Stats{},
                 z_data + begin * columns,
                 columns,
                 end - begin,
                 target_data + begin,
                 max + begin,
                 sum + begin,
                 logit + begin);
    });
  });
  return stats;
}

void turn_into_vocab_gradient(Tensor& z_NV, const Tensor& target_N, const Tensor& log_sum_N, const Tensor& g_N) {
  const int64_t rows = z_NV.size(0), columns = z_NV.size(1);
  const Tensor target = target_N.contiguous(), log_sum = log_sum_N.contiguous(), g = g_N.contiguous();
  if (!z_NV.is_cpu()) {
    launch(VocabGradient{.call = cuda_call(z_NV, "vocab_softmax"),
                         .z = mutable_data_of(z_NV),
                         .target = target.const_data_ptr<int64_t>(),
                         .log_sum = data_of(log_sum),
                         .g = data_of(g),
                         .rows = rows,
                         .columns = columns});
    return;
  }
  dispatch_float(z_NV.scalar_type(), "vocab_softmax", [&](auto tag) {
    using A = Accumulate<decltype(tag)>;
    A* z_data = z_NV.mutable_data_ptr<A>();
    const int64_t* target_data = target.const_data_ptr<int64_t>();
    const A *log_sum_data = log_sum.const_data_ptr<A>(), *g_data = g.const_data_ptr<A>();
    at::parallel_for(0, rows, row_grain(columns), [&](int64_t begin, int64_t end) {
      simd::call(Gradient{},
                 z_data + begin * columns,
                 columns,
                 end - begin,
                 target_data + begin,
                 log_sum_data + begin,
                 g_data + begin);
    });
  });
}

}  // namespace hanok
