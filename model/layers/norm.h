#pragma once

#include "model/kernels/rms_norm.h"
#include "model/module.h"

namespace hanok {

class RmsNorm {
 public:
  RmsNorm(const BuildContext& ctx, int64_t width, double eps);
  Tensor forward(const Tensor& x) const;
  /// x + added, and the norm of that sum.
  SumAndNorm forward(const Tensor& x, const Tensor& added) const;

 private:
  Tensor weight_;
  double eps_;
};

/// With weight and bias, over the last dim.
class LayerNorm {
 public:
  LayerNorm(const BuildContext& ctx, int64_t width, double eps);
  Tensor forward(const Tensor& x) const;

 private:
  Tensor weight_, bias_;
  double eps_;
};

}  // namespace hanok
