#pragma once

#include "base/tensor.h"

namespace hanok {

/// y_TF = silu(gate_TF) * up_TF, where h = [gate | up] along the last dim; computed in f32 (f64 for f64), silu rounded
/// to the dtype of h before the product.
/// shapes: h [..., 2F] -> y [..., F]; saves h
/// errors: kShape if the last dim is odd; kDevice if a launch fails
/// grads:  h
/// source: arXiv 2002.05202; HF Qwen3VLTextMLP
Tensor swiglu(const Tensor& h);

}  // namespace hanok
