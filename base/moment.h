// A moment in the course of a device's work.
#pragma once

#include <c10/core/Event.h>

#include <memory>

#include "base/tensor.h"

namespace hanok {

/// A moment in the course of the device's work, which the host may reach much earlier; on the CPU the two are one.
class Moment {
 public:
  Moment() = default;
  static Moment now(at::Device device);
  void wait() const;
  /// Both have passed.
  double seconds_since(const Moment& earlier) const;

 private:
  std::shared_ptr<c10::Event> event_;  // null on the CPU
  double host_s_ = 0;
};

}  // namespace hanok
