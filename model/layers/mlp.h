#pragma once

#include "model/layers/linear.h"

namespace hanok {

/// down(silu(gate(x)) * up(x)); gate and up are one weight.
class GatedMlp {
 public:
  GatedMlp(const BuildContext& ctx, int64_t width, int64_t ffn);
  Tensor forward(const Tensor& x) const;

 private:
  Linear up_, down_;
};

/// down(gelu(up(x))) with biases.
class GeluMlp {
 public:
  enum class Form { kExact, kTanh };
  struct Shape {
    int64_t in = 0, ffn = 0, out = 0;
    Form form = Form::kExact;
    bool is_added = false;  // to the stream of a block
  };
  GeluMlp(const BuildContext& ctx, const Shape& shape);
  Tensor forward(const Tensor& x) const;

 private:
  Linear up_, down_;
  Form form_;
};

}  // namespace hanok
