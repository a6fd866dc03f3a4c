#include "trainer/memory_held.h"

#include <c10/core/CachingDeviceAllocator.h>

namespace hanok {

MemoryHeld::MemoryHeld(at::Device device) : device_(device), noted_(allocated()) {}

double MemoryHeld::allocated() const {
  if (device_.is_cpu()) return 0;
  return static_cast<double>(
      c10::getDeviceAllocator(device_.type())->getDeviceStats(device_.index()).allocated_bytes[0].current);
}

void MemoryHeld::note(std::string kind) {
  if (device_.is_cpu()) return;
  const double now = allocated();
  kinds_.push_back({std::move(kind), now - noted_});
  noted_ = now;
}

}  // namespace hanok
