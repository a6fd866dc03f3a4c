#pragma once

#include <functional>
#include <vector>

#include "base/tensor.h"

namespace hanok {

/// y = block(x) without keeping what happens inside: the backward runs `block` again, bit for bit, and differentiates
/// that. `weights`: every weight that block uses; other tensors it captures get no gradient. Collectives inside run
/// again too, in the same order on every rank. grads:  x, weights
Tensor recompute(const std::function<Tensor(const Tensor&)>& block,
                 const Tensor& x,
                 const std::vector<Tensor>& weights);

/// Whether layer `index` is recomputed when every k-th is (0: none).
inline bool is_recomputed(int64_t index, int64_t every) {
  return every > 0 && index % every == 0;
}

}  // namespace hanok
