#include "trainer/clip.h"

namespace hanok {

Clip clip_by_norm(const GradSync& grads, double clip_norm) {
  const Tensor norm = grads.squared_norm().sqrt().to(at::kFloat);
  if (clip_norm == 0) return {norm, at::ones_like(norm)};
  return {norm, (clip_norm / (norm + 1e-6)).clamp_max(1)};
}

}  // namespace hanok
