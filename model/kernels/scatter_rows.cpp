#include "model/kernels/scatter_rows.h"

#include <torch/csrc/autograd/custom_function.h>

#include "base/cuda/call.h"
#include "base/error.h"
#include "model/kernels/lookup_rows_cuda.h"
#include "model/kernels/scatter_rows_cuda.h"

namespace hanok {
namespace {

/// y_t = x_t, with rows[m] in its place or added to it; undefined rows: zeros.
Tensor scattered(const Tensor& x, const Tensor& index, const Tensor& rows, int64_t first, bool add) {
  if (!x.is_cpu()) {
    const CudaCall call = cuda_call(x, "scatter_rows");
    Tensor y = at::empty_like(x), source = at::empty({x.size(0)}, index.options().dtype(at::kInt));
    launch(InvertIndex{.call = call,
                       .index = index.const_data_ptr<int64_t>(),
                       .source = source.mutable_data_ptr<int32_t>(),
                       .count = index.size(0),
                       .rows = x.size(0),
                       .first = first});
    launch(ScatterRows{.call = call,
                       .add = add,
                       .x = data_of(x),
                       .rows = data_of(rows),
                       .source = source.const_data_ptr<int32_t>(),
                       .y = mutable_data_of(y),
                       .num_rows = x.size(0),
                       .width = x.size(1)});
    return y;
  }
  Tensor y = x.clone();
  const int64_t* data = index.const_data_ptr<int64_t>();
  for (int64_t m = 0; m < index.size(0); ++m) {
    const int64_t t = data[m] - first;
    if (t < 0 || t >= x.size(0)) continue;
    Tensor row = y.select(0, t);
    if (add)
      row.add_(rows.select(0, m));
    else if (rows.defined())
      row.copy_(rows.select(0, m));
    else
      row.zero_();
  }
  return y;
}

/// What rows[m] received: dy[index_m - first], zeros where that is another rank's.
Tensor gathered(const Tensor& dy, const Tensor& index, int64_t first) {
  Tensor drows = at::empty({index.size(0), dy.size(1)}, dy.options());
  if (!dy.is_cpu()) {
    launch(LookupRowsForward{.call = cuda_call(dy, "scatter_rows"),
                             .table = data_of(dy),
                             .index = index.const_data_ptr<int64_t>(),
                             .y = mutable_data_of(drows),
                             .count = index.size(0),
                             .rows = dy.size(0),
                             .width = dy.size(1),
                             .first = first});
    return drows;
  }
  const int64_t* data = index.const_data_ptr<int64_t>();
  for (int64_t m = 0; m < index.size(0); ++m) {
    const int64_t t = data[m] - first;
    if (t >= 0 && t < dy.size(0))
      drows.select(0, m).copy_(dy.select(0, t));
    else
      drows.select(0, m).zero_();
  }
  return drows;
}

struct Scatter : torch::autograd::Function<Scatter> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& x,
                        const Tensor& index_in,
                        const Tensor& rows,
                        int64_t first,
                        bool add) {
    const Tensor index = index_in.contiguous();
    ctx->save_for_backward({index});
    ctx->saved_data["first"] = first;
    ctx->saved_data["add"] = add;
    return scattered(x.contiguous(), index, rows.contiguous(), first, add);
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const Tensor index = ctx->get_saved_variables()[0], dy = grads[0].contiguous();
    const int64_t first = ctx->saved_data["first"].toInt();
    Tensor dx, drows;
    if (ctx->needs_input_grad(0))
      dx = ctx->saved_data["add"].toBool() ? dy : scattered(dy, index, Tensor(), first, false);
    if (ctx->needs_input_grad(2)) drows = gathered(dy, index, first);
    return {dx, Tensor(), drows, Tensor(), Tensor()};
  }
};

void require_shapes(const char* kernel, const Tensor& x, const Tensor& index, const Tensor& rows) {
  HANOK_REQUIRE(x.dim() == 2 && rows.dim() == 2 && x.size(1) == rows.size(1) && index.dim() == 1 &&
                    index.size(0) == rows.size(0) && x.scalar_type() == rows.scalar_type(),
                kShape)
      << kernel << ": got rows " << rows.sizes() << " " << at::toString(rows.scalar_type()) << " for indices "
      << index.sizes() << " into " << x.sizes() << " " << at::toString(x.scalar_type())
      << ", expected one row of the same width and dtype for each index";
}

}  // namespace

Tensor replace_rows(const Tensor& x_TD, const Tensor& index_M, const Tensor& rows_MD) {
  require_shapes("replace_rows", x_TD, index_M, rows_MD);
  return Scatter::apply(x_TD, index_M, rows_MD, 0, false);
}

Tensor add_at_rows(const Tensor& x_TD, const Tensor& index_M, const Tensor& rows_MD, int64_t first) {
  require_shapes("add_at_rows", x_TD, index_M, rows_MD);
  return Scatter::apply(x_TD, index_M, rows_MD, first, true);
}

}  // namespace hanok
