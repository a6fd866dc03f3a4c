#include "parallel/side_stream.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <map>

namespace hanok {
namespace {

c10::Stream current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

}  // namespace

SideStream::SideStream(at::Device device, bool urgent) : device_(device) {
  if (device.is_cpu() || device.is_meta()) return;
  stream_ = c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device, urgent);
  given_.emplace(device.type());
}

void SideStream::follow() {
  given_->record(current_stream(device_));
  given_->block(*stream_);
}

SideStream::Mark SideStream::mark() {
  Mark mark;
  if (!stream_) return mark;
  mark.event_ = std::make_shared<c10::Event>(device_.type());
  mark.device_ = device_;
  mark.event_->record(*stream_);
  return mark;
}

void SideStream::Mark::wait() const {
  if (event_) event_->block(current_stream(device_));
}

void SideStream::Mark::wait_on_host() const {
  if (event_) event_->synchronize();
}

SideStream& travel_stream(at::Device device) {
  static thread_local std::map<int, SideStream> streams;
  return streams.try_emplace(device.index(), device, /*urgent=*/true).first->second;
}

}  // namespace hanok
