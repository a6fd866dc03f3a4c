#include "model/kernels/lookup_rows.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <numeric>

#include "model/kernels/dispatch.h"

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

struct LookupRows : torch::autograd::Function<LookupRows> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& table,
                        const Tensor& index_in,
                        int64_t first) {
    const Tensor index = index_in.contiguous();
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
    ctx->save_for_backward({table, index});
    ctx->saved_data["first"] = first;
    return y;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &table = saved[0], &index = saved[1];
    const Tensor dy = grads[0].contiguous();
    const int64_t width = table.size(1);
    const Uses uses = group_by_row(index, ctx->saved_data["first"].toInt(), table.size(0));
    const int64_t used = static_cast<int64_t>(uses.rows.size());
    const bool sparse = table.grad().defined() && !table.grad().is_sparse();
    Tensor values = at::empty({used, width}, table.options());
    dispatch_float(table.scalar_type(), "lookup_rows", [&](auto tag) {
      using T = decltype(tag);
      using A = Accumulate<T>;
      const T* dy_data = dy.const_data_ptr<T>();
      T* values_data = values.mutable_data_ptr<T>();
      at::parallel_for(0, used, row_grain(width), [&](int64_t begin, int64_t end) {
        std::vector<A> sum(width);
        for (int64_t group = begin; group < end; ++group) {
          std::fill(sum.begin(), sum.end(), A(0));
          for (int64_t use = uses.starts[group]; use < uses.starts[group + 1]; ++use) {
            const T* row = dy_data + uses.order[use] * width;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) sum[i] += static_cast<A>(row[i]);
          }
          for (int64_t i = 0; i < width; ++i) values_data[group * width + i] = static_cast<T>(sum[i]);
        }
      });
    });
    const Tensor rows = at::tensor(uses.rows, at::kLong);
    if (sparse)
      return {at::_sparse_coo_tensor_unsafe(
                  rows.unsqueeze(0), values, table.sizes(), table.options().layout(at::kSparse), /*is_coalesced=*/true),
              Tensor(),
              Tensor()};
    return {at::zeros_like(table).index_copy_(0, rows, values), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor lookup_rows(const Tensor& table, const Tensor& index_T, int64_t first) {
  if (table.is_cpu()) return LookupRows::apply(table, index_T, first);
  const int64_t rows = table.size(0);
  if (rows == 0) return at::zeros({index_T.size(0), table.size(1)}, table.options());
  const Tensor local = index_T - first, here = local.ge(0).logical_and(local.lt(rows));
  return at::embedding(table, local.clamp(0, rows - 1)) * here.to(table.scalar_type()).unsqueeze(1);
}

}  // namespace hanok
