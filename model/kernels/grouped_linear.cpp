#include "model/kernels/grouped_linear.h"

#include <ATen/ops/_grouped_mm.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/cuda/call.h"
#include "base/error.h"
#include "model/kernels/add_product.h"
#include "model/kernels/grouped_linear_cuda.h"
#include "parallel/grad_buffer.h"
#include "parallel/kept.h"

namespace hanok {
namespace {

/// What at::_grouped_mm takes: bf16 on a GPU, rows and addresses of 16 bytes, at most so many experts.
constexpr int64_t kMostGroups = 1023;
bool is_one_launch(const Tensor& x, const Tensor& weight) {
  const auto fits = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0; };
  return x.is_cuda() && x.scalar_type() == at::kBFloat16 && weight.scalar_type() == at::kBFloat16 && x.size(0) > 0 &&
         weight.size(0) <= kMostGroups && weight.size(1) % 8 == 0 && weight.size(2) % 8 == 0 && fits(x) && fits(weight);
}

/// visit(expert, first row, rows) for experts that have any. -> the rows that have an expert
template <class Visit>
int64_t for_each_group(const Tensor& ends_E, int64_t rows, const Visit& visit) {
  const Tensor host = ends_E.cpu();
  const int* ends = host.const_data_ptr<int>();
  int64_t begin = 0;
  for (int64_t e = 0; e < host.size(0); begin = ends[e++]) {
    HANOK_REQUIRE(begin <= ends[e] && ends[e] <= rows, kShape)
        << "grouped_linear: got the rows of expert " << e << " from " << begin << " to " << ends[e]
        << ", expected from 0 to " << rows << " in order";
    if (ends[e] > begin) visit(e, begin, ends[e] - begin);
  }
  return begin;
}

/// y_n = x_n W_e; weight_EIO
Tensor product(const Tensor& x, const Tensor& weight_EIO, const Tensor& ends_E) {
  if (is_one_launch(x, weight_EIO)) return at::_grouped_mm(x, weight_EIO, ends_E);
  const int64_t rows = x.size(0);
  Tensor y = at::empty({rows, weight_EIO.size(2)}, x.options());
  const int64_t used = for_each_group(ends_E, rows, [&](int64_t e, int64_t begin, int64_t size) {
    Tensor to = y.narrow(0, begin, size);
    at::mm_out(to, x.narrow(0, begin, size), weight_EIO.select(0, e));
  });
  y.narrow(0, used, rows - used).zero_();
  return y;
}

/// The gradient dy_e^T x_e of a weight, added to its buffer; where it has none, handed back.
Tensor weight_gradient(const Tensor& weight, const Tensor& dy, const Tensor& x, const Tensor& ends_E) {
  const GradTarget target = grad_target(weight);
  const bool has_buffer = target.buffer.defined(), is_empty = target.is_empty || !has_buffer;
  Tensor sum = has_buffer ? target.buffer : at::empty_like(weight);
  if (is_one_launch(x, weight) && sum.is_contiguous() && is_one_launch(dy, weight)) {
    // What it leaves in the share of an expert without rows differs from GPU to GPU.
    const Tensor share = at::_grouped_mm(dy.t(), x, ends_E);
    launch(AddExpertShares{.call = cuda_call(sum, "grouped_linear"),
                           .sum = mutable_data_of(sum),
                           .share = data_of(share),
                           .ends = ends_E.const_data_ptr<int>(),
                           .experts = sum.size(0),
                           .size = sum.size(1) * sum.size(2),
                           .is_empty = is_empty});
    return has_buffer ? Tensor() : sum;
  }
  if (is_empty) sum.zero_();
  for_each_group(ends_E, x.size(0), [&](int64_t e, int64_t begin, int64_t size) {
    Tensor to = sum.select(0, e);
    add_product(to, dy.narrow(0, begin, size).t(), x.narrow(0, begin, size));
  });
  return has_buffer ? Tensor() : sum;
}

struct GroupedLinear : torch::autograd::Function<GroupedLinear> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& x_in,
                        const Tensor& weight,
                        const Tensor& ends_E,
                        WeightGradients* deferred) {
    const Tensor x = x_in.contiguous();
    remember(*ctx, deferred);
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), weight, ends_E});
    return kept([&] { return product(x, weight.transpose(1, 2), ends_E); });
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &ends = saved[2];
    const Tensor dy = grads[0].contiguous();
    Tensor dx, dweight;
    if (ctx->needs_input_grad(0)) dx = product(dy, weight, ends);
    if (ctx->needs_input_grad(1)) {
      if (WeightGradients* deferred = deferring_now(*ctx)) {
        put_gradient_off(weight);
        deferred->add([weight, dy, x, ends] { add_put_off_gradient(weight, weight_gradient(weight, dy, x, ends)); });
      } else {
        dweight = weight_gradient(weight, dy, x, ends);
      }
    }
    return {dx, dweight, Tensor(), Tensor()};
  }
};

}  // namespace

Tensor grouped_linear(const Tensor& x_ND, const Tensor& weight_EOD, const Tensor& ends_E, WeightGradients* deferred) {
  HANOK_REQUIRE(x_ND.dim() == 2 && weight_EOD.dim() == 3 && x_ND.size(1) == weight_EOD.size(2) &&
                    ends_E.sizes() == at::IntArrayRef{weight_EOD.size(0)} && ends_E.scalar_type() == at::kInt,
                kShape)
      << "grouped_linear: got rows " << x_ND.sizes() << " in groups " << ends_E.sizes() << " and weights "
      << weight_EOD.sizes() << ", expected [N, D], an int32 end for every expert, and [E, O, D]";
  return GroupedLinear::apply(x_ND, weight_EOD, ends_E, deferred);
}

}  // namespace hanok
