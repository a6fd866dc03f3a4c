// Pixels -> features, and the outputs of chosen blocks ("taps").
#pragma once

#include <vector>

#include "base/tensor.h"
#include "model/execution.h"

namespace hanok {

struct TowerOutput {
  Tensor features_PW;           // sequence layout over P
  std::vector<Tensor> taps_PW;  // in the order of config.taps
};

class Tower {
 public:
  virtual ~Tower() = default;
  /// pixels_PC (cast to the model's dtype inside), grid_I3 int64 on the host (t, h, w in patches).
  /// P is padded to a multiple of tp * merge^2 where rows are cut over tp; features keep the padding (the connector
  /// cuts it off). errors: kShape if
  /// pixels and grids do not fit each other or the config
  virtual TowerOutput forward(const Tensor& pixels_PC, const Tensor& grid_I3, const Execution& execution) const = 0;
};

}  // namespace hanok
