// Pixels -> features, and the outputs of chosen blocks ("taps").
#pragma once

#include <vector>

#include "model/module.h"

namespace hanok {

struct TowerOutput {
  Tensor features_PW;             // sequence layout over P
  std::vector<Tensor> taps_PW;    // in the order of config.taps
};

class Tower {
 public:
  virtual ~Tower() = default;
  /// pixels_PC f32 (cast to the model's dtype inside), grid_I3 int64 on the host (t, h, w in patches).
  /// P is padded to a multiple of tp * merge^2 inside; features keep the padding (the connector's users cut it off).
  virtual TowerOutput forward(const Tensor& pixels_PC, const Tensor& grid_I3, int64_t recompute_every) const = 0;
};

}  // namespace hanok
