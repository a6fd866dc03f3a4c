#include "model/weight_gradients.h"

#include <torch/csrc/autograd/custom_function.h>

namespace hanok {
namespace {

constexpr const char* kKey = "weight gradients";

struct Holder : torch::CustomClassHolder {
  explicit Holder(WeightGradients* deferred) : deferred(deferred) {}
  WeightGradients* deferred;
};

}  // namespace

void remember(torch::autograd::AutogradContext& ctx, WeightGradients* deferred) {
  if (deferred) ctx.saved_data[kKey] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(deferred));
}

WeightGradients* deferring_now(const torch::autograd::AutogradContext& ctx) {
  const auto found = ctx.saved_data.find(kKey);
  if (found == ctx.saved_data.end()) return nullptr;
  WeightGradients* deferred = static_cast<Holder&>(*found->second.toCapsule()).deferred;
  return deferred->deferring() ? deferred : nullptr;
}

}  // namespace hanok
