#include "model/kernels/move_rows.h"

#include <ATen/Parallel.h>

#include "base/cuda/call.h"
#include "model/kernels/dispatch.h"
#include "model/kernels/route_rows_cuda.h"

namespace hanok {

void spread_rows(const Tensor& x_TD, const Tensor& slot_N, const Tensor& weight_TK, int64_t choices, Tensor& y_ND) {
  const int64_t width = x_TD.size(1), x_step = x_TD.stride(0), y_step = y_ND.stride(0);
  if (!x_TD.is_cpu()) {
    launch(SpreadRows{.call = cuda_call(x_TD, "gather_rows"),
                      .x = x_TD.const_data_ptr(),
                      .slot = slot_N.const_data_ptr<int64_t>(),
                      .weight = data_of(weight_TK),
                      .y = y_ND.mutable_data_ptr(),
                      .num_rows = y_ND.size(0),
                      .choices = choices,
                      .width = width,
                      .x_step = x_step,
                      .y_step = y_step});
    return;
  }
  dispatch_float(x_TD.scalar_type(), "gather_rows", [&](auto tag) {
    using T = decltype(tag);
    using A = Accumulate<T>;
    const T* from = x_TD.const_data_ptr<T>();
    const T* weight = weight_TK.defined() ? weight_TK.const_data_ptr<T>() : nullptr;
    const int64_t* slot = slot_N.const_data_ptr<int64_t>();
    T* to = y_ND.mutable_data_ptr<T>();
    at::parallel_for(0, y_ND.size(0), row_grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T* source = from + slot[n] / choices * x_step;
        const A factor = weight ? static_cast<A>(weight[slot[n]]) : A(1);
        for (int64_t i = 0; i < width; ++i) to[n * y_step + i] = static_cast<T>(factor * static_cast<A>(source[i]));
      }
    });
  });
}

void collect_rows(const Tensor& x_ND, const Tensor& weight_TK, const Tensor& place_TK, Tensor& y_TD) {
  const int64_t choices = place_TK.size(1), width = x_ND.size(1), x_step = x_ND.stride(0), y_step = y_TD.stride(0);
  if (!x_ND.is_cpu()) {
    launch(CollectRows{.call = cuda_call(x_ND, "combine_rows"),
                       .x = x_ND.const_data_ptr(),
                       .weight = data_of(weight_TK),
                       .place = place_TK.const_data_ptr<int64_t>(),
                       .y = y_TD.mutable_data_ptr(),
                       .num_rows = y_TD.size(0),
                       .choices = choices,
                       .width = width,
                       .x_step = x_step,
                       .y_step = y_step});
    return;
  }
  dispatch_float(x_ND.scalar_type(), "combine_rows", [&](auto tag) {
    using T = decltype(tag);
    using A = Accumulate<T>;
    const T* from = x_ND.const_data_ptr<T>();
    const T* weight = weight_TK.defined() ? weight_TK.const_data_ptr<T>() : nullptr;
    const int64_t* place = place_TK.const_data_ptr<int64_t>();
    T* to = y_TD.mutable_data_ptr<T>();
    at::parallel_for(0, y_TD.size(0), row_grain(width * choices), [&](int64_t begin, int64_t end) {
      std::vector<A> sum(width);
      for (int64_t t = begin; t < end; ++t) {
        std::fill(sum.begin(), sum.end(), A(0));
        for (int64_t k = 0; k < choices; ++k) {
          const int64_t at = place[t * choices + k];
          if (at < 0) continue;
          const A factor = weight ? static_cast<A>(weight[t * choices + k]) : A(1);
          for (int64_t i = 0; i < width; ++i) sum[i] += factor * static_cast<A>(from[at * x_step + i]);
        }
        for (int64_t i = 0; i < width; ++i) to[t * y_step + i] = static_cast<T>(sum[i]);
      }
    });
  });
}

}  // namespace hanok
