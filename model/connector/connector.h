// Tower features -> tokens of the decoder's width.
#pragma once

#include <vector>

#include "model/vision/tower.h"

namespace hanok {

struct VisionTokens {
  Tensor tokens_MD;             // full layout, padding rows cut off
  std::vector<Tensor> taps_MD;  // same, one per tap
};

class Connector {
 public:
  virtual ~Connector() = default;
  /// `num_tokens`: M of the real patches.
  virtual VisionTokens forward(const TowerOutput& features, int64_t num_tokens) const = 0;
};

}  // namespace hanok
