#include "model/kernels/grouped_linear.h"

#include <ATen/ops/_grouped_mm.h>
#include <torch/csrc/autograd/custom_function.h>

#include <numeric>

#include "base/error.h"
#include "model/kernels/add_product.h"
#include "parallel/grad_buffer.h"

namespace hanok {
namespace {

using Counts = std::vector<int64_t>;

/// What at::_grouped_mm takes: bf16 on a GPU, rows of 16 bytes.
bool is_one_launch(const Tensor& x, const Tensor& weight) {
  return x.is_cuda() && x.scalar_type() == at::kBFloat16 && x.size(0) > 0 && weight.size(1) % 8 == 0 &&
         weight.size(2) % 8 == 0;
}

/// Where the rows of each expert end, on the device.
Tensor ends_of(const Counts& counts, at::Device device) {
  std::vector<int32_t> ends(counts.size());
  std::partial_sum(counts.begin(), counts.end(), ends.begin());
  return at::tensor(ends, at::kInt).to(device, /*non_blocking=*/true);
}

/// visit(expert, its rows) for experts that have any.
template <class Visit>
void for_each_group(const Counts& counts, const Visit& visit) {
  int64_t begin = 0;
  for (size_t e = 0; e < counts.size(); begin += counts[e++])
    if (counts[e] > 0) visit(static_cast<int64_t>(e), begin, counts[e]);
}

/// y_n = x_n W_e; weight_EIO
Tensor product(const Tensor& x, const Tensor& weight_EIO, const Counts& counts) {
  if (is_one_launch(x, weight_EIO)) return at::_grouped_mm(x, weight_EIO, ends_of(counts, x.device()));
  Tensor y = at::empty({x.size(0), weight_EIO.size(2)}, x.options());
  for_each_group(counts, [&](int64_t e, int64_t begin, int64_t size) {
    Tensor to = y.narrow(0, begin, size);
    at::mm_out(to, x.narrow(0, begin, size), weight_EIO.select(0, e));
  });
  return y;
}

/// sum_e += dy_e^T x_e
void add_weight_gradient(Tensor& sum_EOD, const Tensor& dy, const Tensor& x, const Counts& counts) {
  if (is_one_launch(x, sum_EOD)) {
    sum_EOD.add_(at::_grouped_mm(dy.t(), x, ends_of(counts, x.device())));
    return;
  }
  for_each_group(counts, [&](int64_t e, int64_t begin, int64_t size) {
    Tensor to = sum_EOD.select(0, e);
    add_product(to, dy.narrow(0, begin, size).t(), x.narrow(0, begin, size));
  });
}

struct GroupedLinear : torch::autograd::Function<GroupedLinear> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& x_in,
                        const Tensor& weight,
                        const Counts& counts) {
    const Tensor x = x_in.contiguous();
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), weight});
    ctx->saved_data["counts"] = counts;
    return product(x, weight.transpose(1, 2), counts);
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    const Tensor dy = grads[0].contiguous();
    const Counts counts = ctx->saved_data["counts"].toIntVector();
    Tensor dx, dweight;
    if (ctx->needs_input_grad(0)) dx = product(dy, weight, counts);
    if (ctx->needs_input_grad(1)) {
      Tensor sum = grad_buffer(weight);
      if (!sum.defined()) sum = dweight = at::zeros_like(weight);
      add_weight_gradient(sum, dy, x, counts);
    }
    return {dx, dweight, Tensor()};
  }
};

}  // namespace

Tensor grouped_linear(const Tensor& x_ND, const Tensor& weight_EOD, const Counts& counts_E) {
  HANOK_REQUIRE(x_ND.dim() == 2 && weight_EOD.dim() == 3 && x_ND.size(1) == weight_EOD.size(2) &&
                    static_cast<int64_t>(counts_E.size()) == weight_EOD.size(0) &&
                    std::accumulate(counts_E.begin(), counts_E.end(), int64_t{0}) == x_ND.size(0),
                kShape)
      << "grouped_linear: got rows " << x_ND.sizes() << " in groups of " << counts_E << " and weights "
      << weight_EOD.sizes() << ", expected [N, D], a count for every expert that add up to N, and [E, O, D]";
  return GroupedLinear::apply(x_ND, weight_EOD, counts_E);
}

}  // namespace hanok
