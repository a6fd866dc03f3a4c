#include "model/layers/host_lane.h"

#include <functional>
#include <map>
#include <utility>

namespace hanok {
namespace {

/// Streams of the way out and of the way back: a link carries both at once.
SideStream& side_stream(at::Device device, bool is_back) {
  static thread_local std::map<std::pair<int, bool>, SideStream> streams;
  return streams.try_emplace({device.index(), is_back}, device, /*urgent=*/false).first->second;
}

/// Copies beside the work of the current stream, after what it was given so far. -> the end of them
SideStream::Mark copied(at::Device device, bool is_back, const std::function<void()>& copy) {
  SideStream& side = side_stream(device, is_back);
  side.run(copy);
  return side.mark();
}

bool is_moved(const Tensor& x) {
  return x.defined() && !x.is_meta();
}

Tensor room_on_host(const Tensor& x) {
  return at::empty(x.sizes(), x.options().device(at::kCPU).pinned_memory(!x.is_cpu()));
}

}  // namespace

Parked::~Parked() {
  if (!here_.empty() && !away_.empty()) moved_.wait();
}

void Parked::send() {
  if (is_sent_) return;
  is_sent_ = true;
  away_.resize(here_.size());
  device_ = here_.front().device();  // the input of the layer
  moved_ = copied(device_, /*is_back=*/false, [&] {
    for (size_t i = 0; i < here_.size(); ++i) {
      if (!is_moved(here_[i])) continue;
      away_[i] = room_on_host(here_[i]);
      away_[i].copy_(here_[i], /*non_blocking=*/true);
    }
  });
}

void Parked::leave() {
  if (!is_sent_ || here_.empty()) return;
  moved_.wait();
  for (size_t i = 0; i < here_.size(); ++i)
    if (!is_moved(here_[i])) away_[i] = here_[i];  // shapes
  here_.clear();
}

void Parked::fetch() {
  if (!here_.empty() || away_.empty()) return;
  // Room is taken on the current stream: what lay there before has ended when the copies begin.
  for (const Tensor& away : away_)
    here_.push_back(is_moved(away) ? at::empty(away.sizes(), away.options().device(device_)) : away);
  moved_ = copied(device_, /*is_back=*/true, [&] {
    for (size_t i = 0; i < here_.size(); ++i)
      if (is_moved(away_[i])) here_[i].copy_(away_[i], /*non_blocking=*/true);
  });
}

std::vector<Tensor> Parked::take() {
  fetch();
  if (before_) before_->fetch();
  before_ = nullptr;
  moved_.wait();
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
