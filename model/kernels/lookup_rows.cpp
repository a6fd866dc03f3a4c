#include "model/kernels/lookup_rows.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <numeric>

#include "base/cuda/call.h"
#include "model/kernels/dispatch.h"
#include "model/kernels/lookup_rows_cuda.h"
#include "model/kernels/sum_by_row_cuda.h"
#include "parallel/grad_buffer.h"

namespace hanok {
namespace {

/// Positions of T grouped by the row they use: group g is row rows[g], positions order[starts[g], starts[g + 1]).
struct Uses {
  std::vector<int64_t> rows, starts, order;
};

Uses group_by_row(const Tensor& index, int64_t first, int64_t num_rows) {
  const int64_t* data = index.const_data_ptr<int64_t>();
  Uses uses;
  for (int64_t t = 0; t < index.size(0); ++t)
    if (data[t] >= first && data[t] < first + num_rows) uses.order.push_back(t);
  std::stable_sort(uses.order.begin(), uses.order.end(), [&](int64_t a, int64_t b) { return data[a] < data[b]; });
  for (size_t i = 0; i < uses.order.size(); ++i) {
    const int64_t row = data[uses.order[i]] - first;
    if (!uses.rows.empty() && uses.rows.back() == row) continue;
    uses.rows.push_back(row);
    uses.starts.push_back(static_cast<int64_t>(i));
  }
  uses.starts.push_back(static_cast<int64_t>(uses.order.size()));
  return uses;
}

Tensor cuda_forward(const Tensor& table, const Tensor& index, int64_t first) {
  Tensor y = at::empty({index.size(0), table.size(1)}, table.options());
  launch(LookupRowsForward{.call = cuda_call(table, "lookup_rows"),
                           .table = data_of(table),
                           .index = index.const_data_ptr<int64_t>(),
                           .y = mutable_data_of(y),
                           .count = index.size(0),
                           .rows = table.size(0),
                           .width = table.size(1),
                           .first = first});
  return y;
}

/// Rows of `to` = or += what their uses received; other rows are not touched. `to` has the dtype of dy, or the wide
/// one.
void cuda_add(Tensor& to, bool adds, const Tensor& dy, const Tensor& index, int64_t first) {
  const auto wide = accumulate_type(dy.scalar_type());
  const auto [key, use] = at::sort(index, /*stable=*/true, 0, /*descending=*/false);
  const Tensor partial = at::empty({sum_by_row_partials(index.size(0)), to.size(1)}, dy.options().dtype(wide));
  launch(SumByRow{.call = cuda_call(dy, "lookup_rows"),
                  .key = key.const_data_ptr<int64_t>(),
                  .use = use.const_data_ptr<int64_t>(),
                  .dy = data_of(dy),
                  .out = mutable_data_of(to),
                  .is_wide = to.scalar_type() == wide,
                  .adds = adds,
                  .partial = mutable_data_of(partial),
                  .uses = index.size(0),
                  .taps = 1,
                  .rows = to.size(0),
                  .width = to.size(1),
                  .first = first});
}

/// The same for any dtype of `to`.
void cpu_add(Tensor& to, bool adds, const Tensor& dy, const Tensor& index, int64_t first) {
  const Uses uses = group_by_row(index, first, to.size(0));
  const int64_t used = static_cast<int64_t>(uses.rows.size()), width = to.size(1);
  dispatch_float(dy.scalar_type(), "lookup_rows", [&](auto tag) {
    using A = Accumulate<decltype(tag)>;
    const auto* dy_data = dy.const_data_ptr<decltype(tag)>();
    dispatch_float(to.scalar_type(), "lookup_rows", [&](auto to_tag) {
      using O = decltype(to_tag);
      using W = std::common_type_t<A, Accumulate<O>>;
      O* to_data = to.mutable_data_ptr<O>();
      at::parallel_for(0, used, row_grain(width), [&](int64_t begin, int64_t end) {
        std::vector<A> sum(width);
        for (int64_t group = begin; group < end; ++group) {
          std::fill(sum.begin(), sum.end(), A(0));
          for (int64_t use = uses.starts[group]; use < uses.starts[group + 1]; ++use) {
            const auto* row = dy_data + uses.order[use] * width;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) sum[i] += static_cast<A>(row[i]);
          }
          O* here = to_data + uses.rows[group] * width;
          for (int64_t i = 0; i < width; ++i)
            here[i] = static_cast<O>((adds ? static_cast<W>(here[i]) : W(0)) + sum[i]);
        }
      });
    });
  });
}

void add_rows(Tensor& to, bool adds, const Tensor& dy, const Tensor& index, int64_t first) {
  to.is_cpu() ? cpu_add(to, adds, dy, index, first) : cuda_add(to, adds, dy, index, first);
}

bool takes_rows(const Tensor& buffer, const Tensor& dy) {
  const auto dtype = buffer.scalar_type();
  return buffer.is_contiguous() &&
         (buffer.is_cpu() || dtype == dy.scalar_type() || dtype == accumulate_type(dy.scalar_type()));
}

/// The gradient of `table`: undefined where it was added to its buffer.
Tensor gradient_of(const Tensor& table, const Tensor& dy, const Tensor& index, int64_t first) {
  GradTarget target = grad_target(table);
  if (target.buffer.defined() && takes_rows(target.buffer, dy)) {
    if (target.is_empty) target.buffer.zero_();
    add_rows(target.buffer, !target.is_empty, dy, index, first);
    return {};
  }
  Tensor gradient = at::zeros_like(table, at::MemoryFormat::Contiguous);
  add_rows(gradient, false, dy, index, first);
  if (!target.buffer.defined()) return gradient;
  target.is_empty ? target.buffer.copy_(gradient) : target.buffer.add_(gradient);
  return {};
}

struct LookupRows : torch::autograd::Function<LookupRows> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& table_in,
                        const Tensor& index_in,
                        int64_t first) {
    const Tensor table = table_in.contiguous(), index = index_in.contiguous();
    ctx->save_for_backward({table_in, index});
    ctx->saved_data["first"] = first;
    if (!table.is_cpu()) return cuda_forward(table, index, first);
    const int64_t count = index.size(0), rows = table.size(0), width = table.size(1);
    Tensor y = at::empty({count, width}, table.options());
    const int64_t* index_data = index.const_data_ptr<int64_t>();
    dispatch_float(table.scalar_type(), "lookup_rows", [&](auto tag) {
      using T = decltype(tag);
      const T* table_data = table.const_data_ptr<T>();
      T* y_data = y.mutable_data_ptr<T>();
      at::parallel_for(0, count, row_grain(width), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          const int64_t row = index_data[t] - first;
          if (row >= 0 && row < rows)
            std::copy_n(table_data + row * width, width, y_data + t * width);
          else
            std::fill_n(y_data + t * width, width, T(0));
        }
      });
    });
    return y;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &table = saved[0], &index = saved[1];
    return {gradient_of(table, grads[0].contiguous(), index, ctx->saved_data["first"].toInt()), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor lookup_rows(const Tensor& table, const Tensor& index_T, int64_t first) {
  return LookupRows::apply(table, index_T, first);
}

}  // namespace hanok
