#include "trainer/step_scalars.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>

namespace hanok {

Moment Moment::now(at::Device device) {
  Moment out;
  out.host_s_ = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
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

LateScalars::LateScalars(const StepResult& result, const DecoderConfig& decoder) {
  const auto wide = [](const Tensor& x) { return x.to(at::kDouble); };
  std::vector<Tensor> numbers = {wide(result.loss), wide(result.grad_norm), wide(result.applied)};
  if (result.assigned_LE.defined()) {
    numbers.insert(numbers.end(),
                   {wide(result.aux_loss), wide(result.assigned_LE.sum()), wide(result.assigned_LE.amax())});
    expert_slots_ = static_cast<double>(decoder.num_expert_layers() * decoder.experts);
  }
  const Tensor all = at::stack(numbers);
  host_ = all;
  if (!all.is_cpu()) {
    host_ = at::empty(all.sizes(), all.options().device(at::kCPU).pinned_memory(true));
    host_.copy_(all, /*non_blocking=*/true);
  }
  end_ = Moment::now(all.device());
}

StepScalars LateScalars::read() const {
  end_.wait();
  const auto* n = host_.const_data_ptr<double>();
  StepScalars out{.loss = n[0], .grad_norm = n[1], .applied = n[2] != 0};
  if (expert_slots_ > 0)
    out.experts = StepMetrics::Experts{.aux_loss = n[3], .tokens_mean = n[4] / expert_slots_, .tokens_max = n[5]};
  return out;
}

}  // namespace hanok
