#include "model/layers/norm.h"

#include "model/kernels/layer_norm.h"

namespace hanok {

RmsNorm::RmsNorm(const BuildContext& ctx, int64_t width, double eps)
    : weight_(ctx.param("weight", {.shape = {width}, .init = ones()})), eps_(eps) {}

Tensor RmsNorm::forward(const Tensor& x) const {
  return rms_norm(x, weight_, eps_);
}

SumAndNorm RmsNorm::forward(const Tensor& x, const Tensor& added) const {
  return add_rms_norm(x, added, weight_, eps_);
}

LayerNorm::LayerNorm(const BuildContext& ctx, int64_t width, double eps)
    : weight_(ctx.param("weight", {.shape = {width}, .init = ones()})),
      bias_(ctx.param("bias", {.shape = {width}, .init = zeros()})),
      eps_(eps) {}

Tensor LayerNorm::forward(const Tensor& x) const {
  return layer_norm(x, weight_, bias_, eps_);
}

}  // namespace hanok
