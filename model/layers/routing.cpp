#include "model/layers/routing.h"

#include <torch/csrc/autograd/custom_function.h>

namespace hanok {
namespace {

struct Holder : torch::CustomClassHolder {
  explicit Holder(std::shared_ptr<Routing> routing) : held(std::move(routing)) {}
  std::shared_ptr<Routing> held;
};

struct Balance : torch::autograd::Function<Balance> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& share_TE,
                        const Tensor& row_T,
                        const std::shared_ptr<Routing>& routing) {
    ctx->save_for_backward({row_T});
    ctx->saved_data["routing"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(routing));
    return share_TE.view_as(share_TE);
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const Tensor row_T = ctx->get_saved_variables()[0];
    const Routing& routing = *static_cast<Holder&>(*ctx->saved_data["routing"].toCapsule()).held;
    if (routing.coefficient == 0 || !routing.is_finished()) return {grads[0], Tensor(), Tensor()};
    const Tensor own = routing.gradient_RE.to(grads[0].scalar_type()).index_select(0, row_T.clamp_min(0));
    return {grads[0] + own.masked_fill(row_T.lt(0).unsqueeze(1), 0), Tensor(), Tensor()};
  }
};

}  // namespace

void Routing::record(
    int64_t layer, int64_t layers, const Tensor& index_TK, const Tensor& share_TE, const Tensor& rows) {
  if (is_finished()) return;
  const at::NoGradGuard no_grad;
  const int64_t experts = share_TE.size(1);
  if (!assigned_LRE.defined()) {
    experts_per_token = index_TK.size(1);
    assigned_LRE = at::zeros({layers, num_rows, experts}, index_TK.options());
    share_RE = at::zeros({num_rows, experts}, share_TE.options());
  }
  // Padding counts into a row of its own, that is cut off.
  const Tensor place_T = at::where(rows.lt(0), at::scalar_tensor(num_rows, rows.options()), rows);
  const Tensor cell = (place_T.unsqueeze(1) * experts + index_TK).reshape({-1});
  const Tensor counts = at::bincount(cell, {}, (num_rows + 1) * experts).view({num_rows + 1, experts});
  assigned_LRE[layer].copy_(counts.narrow(0, 0, num_rows));
  const Tensor sums = at::zeros({num_rows + 1, experts}, share_TE.options()).index_add(0, place_T, share_TE.detach());
  share_RE.add_(sums.narrow(0, 0, num_rows));
}

void Routing::finish(const Groups& groups) {
  if (!assigned_LRE.defined() || is_finished()) return;
  const at::NoGradGuard no_grad;
  Tensor assigned_RE = assigned_LRE.sum(0);
  groups.tp->all_reduce(assigned_RE, Reduce::kSum);
  groups.cp->all_reduce(assigned_RE, Reduce::kSum);
  const auto experts = static_cast<double>(assigned_RE.size(1)), layers = static_cast<double>(expert_layers);
  // A row's tokens are assigned K times in each layer: n_r = sum_e assigned_re / (K L).
  const Tensor wide = assigned_RE.to(at::kDouble);
  const Tensor per_token = wide * (layers * static_cast<double>(experts_per_token)) / wide.sum(1, true).clamp_min(1);
  const Tensor weight_RE = per_token * (experts / (std::max(tokens_of_step, 1.0) * layers * layers));
  aux = (weight_RE * share_RE.to(at::kDouble)).sum();
  gradient_RE = weight_RE * coefficient;
}

Tensor with_balance(const Tensor& share_TE, const Tensor& row_T, const std::shared_ptr<Routing>& routing) {
  return Balance::apply(share_TE, row_T, routing);
}

}  // namespace hanok
