#include "model/layers/linear.h"

#include <torch/csrc/autograd/custom_function.h>

#include "model/kernels/add_product.h"
#include "parallel/grad_buffer.h"
#include "parallel/kept.h"
#include "parallel/redistribute.h"

namespace hanok {
namespace {

/// buffer += dy^T x where the weight has a buffer; else the product itself.
Tensor add_or_make_product(const Tensor& weight, const Tensor& dy, const Tensor& x) {
  GradTarget target = grad_target(weight);
  if (!target.buffer.defined()) return at::mm(dy.t(), x);
  target.is_empty ? set_product(target.buffer, dy.t(), x) : add_product(target.buffer, dy.t(), x);
  return {};
}

void add_put_off(const Tensor& weight, const Tensor& bias, const Tensor& x, const Tensor& dy) {
  add_put_off_gradient(weight, add_or_make_product(weight, dy, x));
  if (bias.defined()) add_put_off_gradient(bias, dy.sum(0));
}

/// y = x w^T + b, whose weight gradient is added straight to the buffer of the step where the weight has one.
struct Matmul : torch::autograd::Function<Matmul> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& x,
                        const Tensor& weight,
                        const std::optional<Tensor>& bias,
                        WeightGradients* deferred,
                        bool is_part_of_sum) {
    remember(*ctx, deferred);
    // x is for the gradient of the weight only: below frozen layers it need not stay.
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), weight, bias.value_or(Tensor())});
    const auto compute = [&] { return at::linear(x, weight, bias); };
    return is_part_of_sum ? kept_part(compute) : kept(compute);
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &dy = grads[0];
    Tensor dx, dweight, dbias;
    if (ctx->needs_input_grad(0)) dx = at::mm(dy, weight);
    const bool has_bias = saved[2].defined() && ctx->needs_input_grad(2);
    WeightGradients* deferred = deferring_now(*ctx);
    if (deferred && ctx->needs_input_grad(1)) {
      put_gradient_off(weight);
      if (has_bias) put_gradient_off(saved[2]);
      deferred->add([weight, bias = has_bias ? saved[2] : Tensor(), x, dy] { add_put_off(weight, bias, x, dy); });
      return {dx, Tensor(), Tensor(), Tensor(), Tensor()};
    }
    if (ctx->needs_input_grad(1)) dweight = add_or_make_product(weight, dy, x);
    if (has_bias) dbias = dy.sum(0);
    return {dx, dweight, dbias, Tensor(), Tensor()};
  }
};

}  // namespace

Linear::Linear(const BuildContext& ctx, const LinearShape& shape)
    : rule_(ctx.rule()), groups_(&ctx.groups()), deferred_(ctx.deferred()) {
  weight_ = ctx.param("weight",
                      {.shape = {shape.out, shape.in},
                       .segments = shape.segments,
                       .init = shape.is_added ? ctx.random_residual() : ctx.random()});
  if (!shape.bias) return;
  const bool cut = rule_.cut == Cut::kColumn;
  bias_ = ctx.param("bias",
                    {.shape = {shape.out}, .segments = cut ? shape.segments : std::vector<Segment>{}, .init = zeros()});
}

Tensor Linear::forward(const Tensor& x) const {
  const bool column = rule_.cut == Cut::kColumn, row = rule_.cut == Cut::kRow && groups_->tp->size() > 1;
  const Tensor in = column ? redistribute(x, rule_.in, Layout::kFull, *groups_) : x;
  const std::optional<Tensor> bias = row || !bias_.defined() ? std::nullopt : std::optional<Tensor>(bias_);
  const Tensor y = Matmul::apply(in, weight_, bias, deferred_, row);
  if (!row) return y;
  const Tensor sum = redistribute(y, Layout::kPartial, rule_.out, *groups_);
  return bias_.defined() ? sum + bias_ : sum;  // once, after the sum
}

}  // namespace hanok
