#include "model/layers/norm.h"

#include "model/kernels/rms_norm.h"

namespace hanok {

RmsNorm::RmsNorm(const BuildContext& ctx, int64_t width, double eps)
    : weight_(ctx.param("weight", {.shape = {width}, .init = ones()})), eps_(eps) {}

Tensor RmsNorm::forward(const Tensor& x) const {
  return rms_norm(x, weight_, eps_);
}

LayerNorm::LayerNorm(const BuildContext& ctx, int64_t width, double eps)
    : weight_(ctx.param("weight", {.shape = {width}, .init = ones()})),
      bias_(ctx.param("bias", {.shape = {width}, .init = zeros()})),
      eps_(eps) {}

Tensor LayerNorm::forward(const Tensor& x) const {
  return at::layer_norm(x, weight_.sizes(), weight_, bias_, eps_);  // libtorch's kernel is one pass on CPU and CUDA
}

}  // namespace hanok
