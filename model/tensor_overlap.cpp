#include "model/tensor_overlap.h"

#include <ATen/Context.h>
#include <torch/csrc/autograd/engine.h>

#include <utility>

namespace hanok {

namespace {

constexpr int32_t kMultiprocessorsLeft = 16;

}  // namespace

LeaveRoom::LeaveRoom(const SideStream& side) : is_on_gpu_(side.is_apart()) {
  if (is_on_gpu_) at::globalContext()._setSMCarveout_EXPERIMENTAL(kMultiprocessorsLeft);
}

LeaveRoom::~LeaveRoom() {
  if (is_on_gpu_) at::globalContext()._setSMCarveout_EXPERIMENTAL(std::nullopt);
}

TensorOverlap::TensorOverlap(const ParallelConfig& layout, at::Device device)
    : side_(device, /*urgent=*/true), in_forward_(layout.tp_overlap == "all"), pieces_(layout.tp_pieces) {}

void TensorOverlap::hold(Work work) {
  run_held();
  held_ = std::move(work);
  torch::autograd::Engine::get_default_engine().queue_callback([this] { run_held(); });
}

void TensorOverlap::run_held() {
  if (!held_) return;
  const at::NoGradGuard no_grad;
  std::exchange(held_, {})();
}

}  // namespace hanok
