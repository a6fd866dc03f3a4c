#include "trainer/step_scalars.h"

namespace hanok {

LateScalars::LateScalars(const StepResult& result, const DecoderConfig& decoder) {
  const auto wide = [](const Tensor& x) { return x.to(at::kDouble); };
  std::vector<Tensor> numbers = {
      wide(result.loss), wide(result.grad_norm), wide(result.applied), wide(result.has_pictures)};
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
  StepScalars out{.loss = n[0], .grad_norm = n[1], .applied = n[2] != 0, .has_pictures = n[3] != 0};
  if (expert_slots_ > 0)
    out.experts = StepMetrics::Experts{.aux_loss = n[4], .tokens_mean = n[5] / expert_slots_, .tokens_max = n[6]};
  return out;
}

}  // namespace hanok
