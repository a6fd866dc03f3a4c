// The numbers of a step that people see, on their way from the device.
#pragma once

#include <optional>

#include "base/moment.h"
#include "configs/schema/config.h"
#include "trainer/metrics.h"
#include "trainer/step.h"

namespace hanok {

struct StepScalars {
  double loss = 0, grad_norm = 0;
  bool applied = true, has_pictures = true;
  std::optional<StepMetrics::Experts> experts;
};

/// Begins the copy to the host where it is made; read() is the only place of a step where the host waits for the
/// device. Read a step late, the device has had work all the while.
class LateScalars {
 public:
  LateScalars(const StepResult& result, const DecoderConfig& decoder);
  StepScalars read() const;
  /// When they have arrived.
  const Moment& end() const { return end_; }

 private:
  Tensor host_;  // f64
  Moment end_;
  double expert_slots_ = 0;  // experts of all layers; 0: none
};

}  // namespace hanok
