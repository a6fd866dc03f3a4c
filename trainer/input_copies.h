// Micro-batches on their way to the device, beside what it computes.
#pragma once

#include "parallel/side_stream.h"

namespace hanok {

/// A stream of its own for copies to the device, kept over all steps. On a CPU nothing is copied.
class InputCopies {
 public:
  explicit InputCopies(at::Device device) : device_(device), side_(device, /*urgent=*/false) {}
  bool is_apart() const { return side_.is_apart(); }
  /// Begins the copy of a host tensor as soon as the device is through with what it was given so far: memory of the
  /// micro-batches before is used again.
  Tensor after_work(const Tensor& host);
  /// Begins it at once, in memory of its own: for the first micro-batch of a step, while the step before goes on.
  Tensor at_once(const Tensor& host);
  /// What the current stream waits for before it uses the copies made so far.
  SideStream::Mark mark() { return side_.mark(); }

 private:
  at::Device device_;
  SideStream side_;
};

}  // namespace hanok
