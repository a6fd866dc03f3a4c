// What the passes of a pipeline took on the device.
#pragma once

#include <vector>

#include "base/moment.h"
#include "parallel/pipeline_schedule.h"

namespace hanok {

/// The passes of one step on one rank, without the wait for what enters them; made when the step begins. On GPUs reading
/// it waits for the device.
class PassTimes {
 public:
  explicit PassTimes(at::Device device) : device_(device), start_(Moment::now(device)) {}
  const Moment& start() const { return start_; }
  void begin(const Action& action, int piece);
  void end();

  /// Seconds of a micro-batch on each of `pieces`, those of other ranks 0: medians of their passes, because the first
  /// may wait for weights and the last sends gradients. Both gradients in one count as an input gradient.
  std::vector<PassCosts> costs(int pieces) const;

  /// Of the step: the number of the last one and those before it.
  int micro_batches() const;

  struct Span {
    Action action;
    int piece = 0;
    double begin_s = 0, end_s = 0;  // of `zero`
  };
  /// In their order; `zero` lies on the same device.
  std::vector<Span> spans(const Moment& zero) const;

 private:
  struct Pass {
    Action action;
    int piece;
    Moment begin, end;
  };
  at::Device device_;
  Moment start_;
  std::vector<Pass> passes_;
};

}  // namespace hanok
