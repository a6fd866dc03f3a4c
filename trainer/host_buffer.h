// A large stretch of host memory that a GPU copies to beside its work. Private to trainer/.
//
// The driver's own pinned memory comes at about a GB/s, and holds up every call of the device meanwhile. So the pages
// come first, by several threads and without the driver, and are pinned after that, a piece at a time.
#pragma once

#include <atomic>
#include <functional>
#include <string>

#include "base/tensor.h"
#include "trainer/background.h"

namespace hanok {

struct HostBufferOptions {
  int64_t piece_bytes = int64_t{1} << 29;   // pinned at once; a multiple of 2 MiB
  std::function<double()> available_bytes;  // of the host; empty: as host_memory() says
};

/// Carved into tensors, in order. All but the making belongs to one thread.
class HostBuffer {
 public:
  static constexpr int64_t kAlignment = 512;
  /// What a tensor of so many bytes takes of it.
  static int64_t room_bytes(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

  /// Begins to make it, in a thread. For a CPU the pages come as they are written, as with other memory. Where pages
  /// cannot be pinned that is said once (WARNING), and copies are correct but the host waits for them.
  /// `holds` is what the error names; making().take() returns it: kDevice if the host has no room for it
  HostBuffer(int64_t bytes, at::Device device, std::string holds, HostBufferOptions options = {});
  /// Ends the making soon if it is still under way. No copy may be: the memory goes.
  ~HostBuffer();
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;
  /// Take its result before anything below is called.
  Background& making() { return making_; }

  int64_t bytes() const { return bytes_; }
  int64_t pinned_bytes() const { return pinned_bytes_; }
  /// `size` values that nobody has, not set to anything. They last as long as this, or until clear().
  Tensor carve(at::ScalarType dtype, int64_t size);
  void clear() { used_ = 0; }
  /// Gives the device the copy of `from` to `to`, which was carved, both flat. Tensor::copy_ of a whole tensor would
  /// reach over pieces that were pinned one by one, which the driver refuses.
  void copy(const Tensor& to, const Tensor& from) const;

 private:
  void make();
  void map();
  void require_room(int64_t rest) const;
  void pin(int64_t begin, int64_t size);
  void free();

  const int64_t bytes_;
  const at::Device device_;
  const std::string holds_;
  const HostBufferOptions options_;
  const int num_threads_;
  void* mapped_ = nullptr;
  std::byte* begin_ = nullptr;  // in it, on a large page
  int64_t used_ = 0, pinned_bytes_ = 0;
  bool is_refused_ = false;  // by the driver
  std::atomic<bool> is_ending_ = false;
  Background making_;
};

}  // namespace hanok
