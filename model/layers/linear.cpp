#include "model/layers/linear.h"

#include "parallel/redistribute.h"

namespace hanok {

Linear::Linear(const BuildContext& ctx, const LinearShape& shape) : rule_(ctx.rule()), groups_(&ctx.groups()) {
  weight_ = ctx.param("weight", {.shape = {shape.out, shape.in}, .segments = shape.segments, .init = ctx.random()});
  if (!shape.bias) return;
  const bool cut = rule_.cut == Cut::kColumn;
  bias_ = ctx.param("bias",
                    {.shape = {shape.out}, .segments = cut ? shape.segments : std::vector<Segment>{}, .init = zeros()});
}

Tensor Linear::forward(const Tensor& x) const {
  const bool column = rule_.cut == Cut::kColumn, row = rule_.cut == Cut::kRow && groups_->tp->size() > 1;
  const Tensor in = column ? redistribute(x, rule_.in, Layout::kFull, *groups_) : x;
  const Tensor y = at::linear(in, weight_, row ? Tensor() : bias_);
  if (!row) return y;
  const Tensor sum = redistribute(y, Layout::kPartial, rule_.out, *groups_);
  return bias_.defined() ? sum + bias_ : sum;  // once, after the sum
}

}  // namespace hanok
