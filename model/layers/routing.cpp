#include "model/layers/routing.h"

namespace hanok {

Tensor Routing::counts_of(int64_t layer) {
  if (is_finished()) return {};
  if (!assigned_LRE.defined()) assigned_LRE = at::zeros({layers, num_rows, experts}, row_T.options());
  return assigned_LRE[layer];
}

void Routing::add_shares(int64_t layer, const Tensor& share_TE, const Tensor& row_T) {
  const at::NoGradGuard no_grad;
  if (!share_LRE.defined()) share_LRE = at::zeros({layers, num_rows, experts}, share_TE.options());
  // A product, and no scattered sum: the same bits every time.
  if (!member_RT.defined())
    member_RT = at::arange(num_rows, row_T.options()).unsqueeze(1).eq(row_T).to(share_TE.scalar_type());
  Tensor sums = share_LRE[layer];
  sums.addmm_(member_RT, share_TE);
}

void Routing::carry(int64_t first, int64_t last, at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  if (!assigned_LRE.defined()) assigned_LRE = at::zeros({layers, num_rows, experts}, row_T.options());
  if (!share_LRE.defined()) share_LRE = at::zeros({layers, num_rows, experts}, row_T.options().dtype(dtype));
  const Tensor own = at::stack({assigned_LRE.narrow(0, first, last - first).sum(0).to(at::kDouble),
                                share_LRE.narrow(0, first, last - first).sum(0, false, at::kDouble)});
  carried_2RE = carried_2RE.defined() ? carried_2RE + own : own;
}

void Routing::finish(const Groups& groups) {
  if (is_finished()) return;
  const at::NoGradGuard no_grad;
  Tensor assigned_RE = carried_2RE[0].clone();  // whole numbers: any order of sums is exact
  groups.tp->all_reduce(assigned_RE, Reduce::kSum);
  groups.cp->all_reduce(assigned_RE, Reduce::kSum);
  const auto count = static_cast<double>(expert_layers);
  // A row's tokens are assigned K times in each layer: n_r = sum_e assigned_re / (K L).
  const Tensor per_token =
      assigned_RE * (count * static_cast<double>(experts_per_token)) / assigned_RE.sum(1, true).clamp_min(1);
  const Tensor weight_RE = per_token * (static_cast<double>(experts) / (std::max(tokens_of_step, 1.0) * count * count));
  aux = (weight_RE * carried_2RE[1]).sum();
  gradient_RE = (weight_RE * coefficient).to(share_LRE.scalar_type());
}

}  // namespace hanok
