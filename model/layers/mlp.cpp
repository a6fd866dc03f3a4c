#include "model/layers/mlp.h"

#include "model/kernels/gelu_tanh.h"
#include "model/kernels/swiglu.h"

namespace hanok {

GatedMlp::GatedMlp(const BuildContext& ctx, int64_t width, int64_t ffn)
    : up_(ctx.in("up"), {.in = width, .out = 2 * ffn, .segments = {{.size = ffn}, {.size = ffn}}}),
      down_(ctx.in("down"), {.in = ffn, .out = width, .is_added = true}) {}

Tensor GatedMlp::forward(const Tensor& x) const {
  return down_.forward(swiglu(up_.forward(x)));
}

GeluMlp::GeluMlp(const BuildContext& ctx, const Shape& shape)
    : up_(ctx.in("up"), {.in = shape.in, .out = shape.ffn, .bias = true}),
      down_(ctx.in("down"), {.in = shape.ffn, .out = shape.out, .bias = true, .is_added = shape.is_added}),
      form_(shape.form) {}

Tensor GeluMlp::forward(const Tensor& x) const {
  const Tensor h = up_.forward(x);
  return down_.forward(form_ == Form::kTanh ? gelu_tanh(h) : at::gelu(h));
}

}  // namespace hanok
