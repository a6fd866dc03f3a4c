#include "model/layers/host_lane.h"

#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <functional>
#include <utility>

namespace hanok {
namespace {

/// Streams of the way out and of the way back: a link carries both at once.
c10::Stream side_stream(at::Device device, bool is_back) {
  static thread_local std::optional<c10::Stream> streams[2];
  std::optional<c10::Stream>& stream = streams[is_back];
  if (!stream || stream->device() != device)
    stream = c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device, /*isHighPriority=*/false);
  return *stream;
}

/// Runs `copy` on a side stream after the work so far. -> the end of it
c10::Event on_side_stream(at::Device device, bool is_back, const std::function<void()>& copy) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  const c10::Stream side = side_stream(device, is_back);
  c10::Event ready(device.type()), done(device.type());
  ready.record(guard.getStream(device));
  ready.block(side);
  {
    const c10::StreamGuard on_side(side);
    copy();
  }
  done.record(side);
  return done;
}

void wait_here(const c10::Event& event, at::Device device) {
  event.block(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
}

bool is_moved(const Tensor& x) {
  return x.defined() && !x.is_meta();
}

Tensor room_on_host(const Tensor& x) {
  return at::empty(x.sizes(), x.options().device(at::kCPU).pinned_memory(!x.is_cpu()));
}

}  // namespace

void Parked::send() {
  if (is_sent_) return;
  is_sent_ = true;
  away_.resize(here_.size());
  device_ = here_.front().device();  // the input of the layer
  const auto copy = [&] {
    for (size_t i = 0; i < here_.size(); ++i) {
      if (!is_moved(here_[i])) continue;
      away_[i] = room_on_host(here_[i]);
      away_[i].copy_(here_[i], /*non_blocking=*/true);
    }
  };
  if (device_.is_cpu())
    copy();
  else
    moved_.emplace(on_side_stream(device_, /*is_back=*/false, copy));
}

void Parked::leave() {
  if (!is_sent_ || here_.empty()) return;
  if (moved_) wait_here(*moved_, device_);
  for (size_t i = 0; i < here_.size(); ++i)
    if (!is_moved(here_[i])) away_[i] = here_[i];  // shapes
  here_.clear();
}

void Parked::fetch() {
  if (!here_.empty() || away_.empty()) return;
  // Room is taken on the current stream: what lay there before has ended when the copies begin.
  for (const Tensor& away : away_)
    here_.push_back(is_moved(away) ? at::empty(away.sizes(), away.options().device(device_)) : away);
  const auto copy = [&] {
    for (size_t i = 0; i < here_.size(); ++i)
      if (is_moved(away_[i])) here_[i].copy_(away_[i], /*non_blocking=*/true);
  };
  if (device_.is_cpu())
    copy();
  else
    moved_.emplace(on_side_stream(device_, /*is_back=*/true, copy));
}

std::vector<Tensor> Parked::take() {
  fetch();
  if (before_) before_->fetch();
  before_ = nullptr;
  if (moved_) wait_here(*moved_, device_);
  away_.clear();
  return std::exchange(here_, {});
}

void HostLane::add(const std::shared_ptr<Parked>& parked) {
  if (sending_) sending_->leave();
  if (newest_) newest_->send();
  sending_ = newest_;
  parked->before_ = newest_;
  newest_ = parked;
}

void HostLane::finish(bool backward_is_next) {
  if (!backward_is_next) {
    if (sending_) sending_->leave();
    if (newest_) newest_->send();
    if (newest_) newest_->leave();
  }
  newest_ = sending_ = nullptr;
}

}  // namespace hanok
