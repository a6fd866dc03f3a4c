// What layers keep for their backward, on its way to host memory and back.
#pragma once

#include <memory>
#include <vector>

#include "parallel/side_stream.h"

namespace hanok {

/// Tensors that one layer keeps. On a GPU they travel on a stream of their own to and from pinned memory while others
/// compute; on the CPU they are copied. All members are called by the thread that runs the layer.
class Parked {
 public:
  explicit Parked(std::vector<Tensor> tensors) : here_(std::move(tensors)) {}
  /// What nobody took may still be on its way: its memory is given back behind that.
  ~Parked();
  Parked(const Parked&) = delete;
  Parked& operator=(const Parked&) = delete;
  /// Begins the way to the host. The tensors stay here until leave().
  void send();
  /// Later work of the current stream comes after the copies; what was sent is let go.
  void leave();
  /// Begins the way back, if they are away.
  void fetch();
  /// The tensors, seen by later work of the current stream. The layer before it in the forward sets out: its backward
  /// is next.
  std::vector<Tensor> take();

 private:
  friend class HostLane;
  std::vector<Tensor> here_, away_;
  bool is_sent_ = false;
  at::Device device_ = at::kCPU;    // where they belong
  SideStream::Mark moved_;          // the end of the newest copies
  std::shared_ptr<Parked> before_;  // of the layer whose backward comes after this one's
};

/// The layers of one forward. The newest stays on the device; the one before it travels while the next layer runs.
class HostLane {
 public:
  void add(const std::shared_ptr<Parked>& parked);
  void finish(bool backward_is_next);

 private:
  std::shared_ptr<Parked> newest_, sending_;
};

}  // namespace hanok
