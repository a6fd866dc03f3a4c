#include "trainer/fill.h"

#include <c10/core/DeviceGuard.h>

#include <deque>
#include <mutex>

#include "dataio/ordered_workers.h"
#include "parallel/side_stream.h"

namespace hanok {
namespace {

/// Of a filling, what one thread does at once.
struct Stretch {
  const Filling* of = nullptr;
  int64_t begin = 0, size = 0;
  Tensor to() const { return of->to.narrow(0, begin, size); }
  int64_t bytes() const { return size * static_cast<int64_t>(c10::elementSize(of->dtype)); }
};

/// Pinned memory on the way to a GPU, and the stream that copies from it.
class Stage {
 public:
  Stage(at::Device device, int64_t bytes)
      : side_(device, /*urgent=*/false),
        memory_(at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true))) {}

  void pass(const Stretch& stretch) {
    copied_.wait_on_host();
    Tensor host = memory_.narrow(0, 0, stretch.bytes()).view(stretch.of->dtype);
    stretch.of->read(stretch.begin, host);
    side_.run([&] { stretch.to().copy_(host, /*non_blocking=*/true); });
    copied_ = side_.mark();
  }
  void finish() const { copied_.wait_on_host(); }

 private:
  SideStream side_;
  SideStream::Mark copied_;
  Tensor memory_;
};

/// The one whose copy was asked for first is taken first.
class Stages {
 public:
  Stages(at::Device device, int64_t count, int64_t bytes) {
    for (int64_t i = 0; i < count; ++i) free_.push_back(std::make_unique<Stage>(device, bytes));
  }
  std::unique_ptr<Stage> take() {
    const std::lock_guard lock(mutex_);
    std::unique_ptr<Stage> stage = std::move(free_.front());
    free_.pop_front();
    return stage;
  }
  void give_back(std::unique_ptr<Stage> stage) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(stage));
  }
  void finish() const {
    for (const auto& stage : free_) stage->finish();
  }

 private:
  std::mutex mutex_;
  std::deque<std::unique_ptr<Stage>> free_;
};

void fill_on_host(const Stretch& stretch) {
  const at::NoGradGuard no_grad;  // a thread's own
  Tensor to = stretch.to();
  if (to.scalar_type() == stretch.of->dtype) return stretch.of->read(stretch.begin, to);
  Tensor stored = at::empty({stretch.size}, stretch.of->dtype);
  stretch.of->read(stretch.begin, stored);
  to.copy_(stored);
}

std::vector<Stretch> stretches_of(const std::vector<Filling>& fillings, int64_t most) {
  std::vector<Stretch> out;
  for (const Filling& filling : fillings)
    for (int64_t begin = 0; begin < filling.to.numel(); begin += most)
      out.push_back({&filling, begin, std::min(most, filling.to.numel() - begin)});
  return out;
}

}  // namespace

void fill(const std::vector<Filling>& fillings, at::Device device, const FillOptions& options) {
  const std::vector<Stretch> stretches = stretches_of(fillings, options.stretch);
  if (stretches.empty()) return;
  if (device.is_cpu()) return work_in_threads(options.threads, stretches, fill_on_host);
  int64_t largest = 0;
  for (const Stretch& stretch : stretches) largest = std::max(largest, stretch.bytes());
  Stages stages(device, 2 * options.threads, largest);
  work_in_threads(options.threads, stretches, [&](const Stretch& stretch) {
    const at::NoGradGuard no_grad;  // a thread's own, as is the device
    const c10::DeviceGuard guard(device);
    std::unique_ptr<Stage> stage = stages.take();
    stage->pass(stretch);
    stages.give_back(std::move(stage));
  });
  stages.finish();
}

}  // namespace hanok
