#include "model/kernels/interpolate_rows.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/cuda/call.h"
#include "model/kernels/dispatch.h"
#include "model/kernels/interpolate_rows_cuda.h"
#include "model/kernels/simd.h"
#include "model/kernels/sum_by_row_cuda.h"

namespace hanok {
namespace {

struct Forward {
  template <class W, class T, class A>
  HANOK_SIMD_BODY void operator()(
      W, const T* table, const int64_t* index, const A* weight, T* y, A* sum, int64_t rows, int64_t taps, int64_t width)
      const {
    for (int64_t row = 0; row < rows; ++row, index += taps, weight += taps, y += width) {
      for (int64_t i = 0; i < width; ++i) sum[i] = 0;
      for (int64_t k = 0; k < taps; ++k) {
        const T* source = table + index[k] * width;
        const A share = weight[k];
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) sum[i] += share * static_cast<A>(source[i]);
      }
      for (int64_t i = 0; i < width; ++i) y[i] = static_cast<T>(sum[i]);
    }
  }
};

// Threads share the columns, so that every sum is taken in the order of the rows.
struct Backward {
  template <class W, class T, class A>
  HANOK_SIMD_BODY void operator()(W,
                                  const T* dy,
                                  const int64_t* index,
                                  const A* weight,
                                  A* dtable,
                                  int64_t rows,
                                  int64_t taps,
                                  int64_t width,
                                  int64_t first,
                                  int64_t last) const {
    for (int64_t row = 0; row < rows; ++row, index += taps, weight += taps, dy += width) {
      for (int64_t k = 0; k < taps; ++k) {
        A* target = dtable + index[k] * width;
        const A share = weight[k];
#pragma omp simd
        for (int64_t i = first; i < last; ++i) target[i] += share * static_cast<A>(dy[i]);
      }
    }
  }
};

Tensor cuda_backward(const Tensor& dy, const Tensor& index, const Tensor& weight, int64_t rows) {
  Tensor dtable = at::zeros({rows, dy.size(1)}, dy.options());
  const auto [key, use] = at::sort(index.view({-1}), /*stable=*/true, 0, /*descending=*/false);
  const Tensor partial = at::empty({sum_by_row_partials(index.numel()), dy.size(1)},
                                   dy.options().dtype(accumulate_type(dy.scalar_type())));
  launch(SumByRow{.call = cuda_call(dy, "interpolate_rows"),
                  .key = key.const_data_ptr<int64_t>(),
                  .use = use.const_data_ptr<int64_t>(),
                  .weight = data_of(weight),
                  .dy = data_of(dy),
                  .out = mutable_data_of(dtable),
                  .is_wide = false,
                  .adds = false,
                  .partial = mutable_data_of(partial),
                  .uses = index.numel(),
                  .taps = index.size(1),
                  .rows = rows,
                  .width = dy.size(1),
                  .first = 0});
  return dtable;
}

struct InterpolateRows : torch::autograd::Function<InterpolateRows> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& table_in,
                        const Tensor& index_in,
                        const Tensor& weight_in) {
    const Tensor table = table_in.contiguous(), index = index_in.contiguous(), weight = weight_in.contiguous();
    const int64_t rows = index.size(0), taps = index.size(1), width = table.size(1);
    Tensor y = at::empty({rows, width}, table.options());
    ctx->save_for_backward({index, weight});
    ctx->saved_data["rows"] = table.size(0);
    if (!table.is_cpu()) {
      launch(InterpolateRowsForward{.call = cuda_call(table, "interpolate_rows"),
                                    .table = data_of(table),
                                    .index = index.const_data_ptr<int64_t>(),
                                    .weight = data_of(weight),
                                    .y = mutable_data_of(y),
                                    .rows = rows,
                                    .taps = taps,
                                    .width = width});
      return y;
    }
    dispatch_float(table.scalar_type(), "interpolate_rows", [&](auto tag) {
      using T = decltype(tag);
      using A = Accumulate<T>;
      const T* table_data = table.const_data_ptr<T>();
      const int64_t* index_data = index.const_data_ptr<int64_t>();
      const A* weight_data = weight.const_data_ptr<A>();
      T* y_data = y.mutable_data_ptr<T>();
      at::parallel_for(0, rows, row_grain(width * taps), [&](int64_t begin, int64_t end) {
        std::vector<A> sum(width);
        simd::call(Forward{},
                   table_data,
                   index_data + begin * taps,
                   weight_data + begin * taps,
                   y_data + begin * width,
                   sum.data(),
                   end - begin,
                   taps,
                   width);
      });
    });
    return y;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &index = saved[0], &weight = saved[1];
    const Tensor dy = grads[0].contiguous();
    const int64_t rows = index.size(0), taps = index.size(1), width = dy.size(1);
    if (!dy.is_cpu()) return {cuda_backward(dy, index, weight, ctx->saved_data["rows"].toInt()), Tensor(), Tensor()};
    Tensor dtable = at::zeros({ctx->saved_data["rows"].toInt(), width}, weight.options());
    dispatch_float(dy.scalar_type(), "interpolate_rows", [&](auto tag) {
      using T = decltype(tag);
      using A = Accumulate<T>;
      const T* dy_data = dy.const_data_ptr<T>();
      const int64_t* index_data = index.const_data_ptr<int64_t>();
      const A* weight_data = weight.const_data_ptr<A>();
      A* dtable_data = dtable.mutable_data_ptr<A>();
      at::parallel_for(0, width, row_grain(rows * taps), [&](int64_t first, int64_t last) {
        simd::call(Backward{}, dy_data, index_data, weight_data, dtable_data, rows, taps, width, first, last);
      });
    });
    return {dtable.to(dy.scalar_type()), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor interpolate_rows(const Tensor& table, const Tensor& index_PK, const Tensor& weight_PK) {
  HANOK_REQUIRE(index_PK.sizes() == weight_PK.sizes() && index_PK.dim() == 2, kShape)
      << "interpolate_rows: got indices " << index_PK.sizes() << " and weights " << weight_PK.sizes()
      << ", expected the same [P, K]";
  const auto wide = accumulate_type(table.scalar_type());
  HANOK_REQUIRE(weight_PK.scalar_type() == wide, kShape)
      << "interpolate_rows: got weights of " << at::toString(weight_PK.scalar_type()) << ", expected "
      << at::toString(wide);
  return InterpolateRows::apply(table, index_PK, weight_PK);
}

}  // namespace hanok
