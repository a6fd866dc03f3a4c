#include "base/moment.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "base/clock.h"

namespace hanok {

Moment Moment::now(at::Device device) {
  Moment out;
  out.host_s_ = now_s();
  if (device.is_cpu()) return out;
  out.event_ = std::make_shared<c10::Event>(device.type(), c10::EventFlag::BACKEND_DEFAULT);  // the one that has a time
  out.event_->record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
  return out;
}

void Moment::wait() const {
  if (event_) event_->synchronize();
}

double Moment::seconds_since(const Moment& earlier) const {
  if (!event_) return host_s_ - earlier.host_s_;
  return earlier.event_->elapsedTime(*event_) / 1e3;
}

}  // namespace hanok
