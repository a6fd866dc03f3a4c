// What products cut over tp do while rows travel between the ranks.
#pragma once

#include <functional>

#include "configs/schema/config.h"
#include "parallel/side_stream.h"

namespace hanok {

/// One object a model; every Linear looks here. Gives the stream on which rows travel, and keeps one product back so
/// that something is left to do under the next operation of a backward.
class TensorOverlap {
 public:
  TensorOverlap(const ParallelConfig& layout, at::Device device);
  SideStream& side() { return side_; }
  bool in_forward() const { return in_forward_; }
  int64_t pieces() const { return pieces_; }

  using Work = std::function<void()>;
  /// In a backward: `work` is done by the next run_held(), at the latest when this backward ends.
  void hold(Work work);
  void run_held();

 private:
  SideStream side_;
  bool in_forward_;
  int64_t pieces_;
  Work held_;
};

}  // namespace hanok
