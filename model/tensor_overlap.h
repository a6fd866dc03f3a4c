// What products cut over tp do while rows travel between the ranks.
#pragma once

#include <functional>

#include "configs/schema/config.h"
#include "parallel/side_stream.h"

namespace hanok {

/// While it lives, matrix products leave some multiprocessors of the GPU to rows that travel (cuBLASLt's do; others pay
/// no heed). One that plans with all of them ends late where they are not free: the blocks that had to wait begin when
/// the others are through.
class LeaveRoom {
 public:
  explicit LeaveRoom(const SideStream& side);
  ~LeaveRoom();
  LeaveRoom(const LeaveRoom&) = delete;
  LeaveRoom& operator=(const LeaveRoom&) = delete;

 private:
  bool is_on_gpu_;
};

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
