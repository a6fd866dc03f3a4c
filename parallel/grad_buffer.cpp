#include "parallel/grad_buffer.h"

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace hanok {
namespace {

/// Moves what autograd left in .grad into the buffer.
class AddToBuffer final : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit AddToBuffer(Tensor buffer) : buffer_(std::move(buffer)) {}
  void operator()(const Tensor& value) override {
    const at::NoGradGuard no_grad;
    if (!value.grad().defined()) return;  // every share was added by the operations themselves
    buffer_.add_(value.grad());
    value.mutable_grad().reset();
  }
  const Tensor& buffer() const { return buffer_; }

 private:
  Tensor buffer_;
};

}  // namespace

void attach_grad_buffer(const Tensor& weight, const Tensor& buffer) {
  if (weight.scalar_type() == buffer.scalar_type()) {
    weight.mutable_grad() = buffer;  // autograd adds to a .grad that is there already
    return;
  }
  weight.mutable_grad().reset();
  torch::autograd::impl::set_post_acc_grad_hooks(weight, std::make_unique<AddToBuffer>(buffer));
}

void detach_grad_buffer(const Tensor& weight) {
  torch::autograd::impl::set_post_acc_grad_hooks(weight, nullptr);
  weight.mutable_grad().reset();
}

Tensor grad_buffer(const Tensor& weight) {
  if (!weight.defined() || !weight.is_leaf()) return {};
  if (const auto& hook = torch::autograd::impl::post_acc_grad_hooks(weight))
    if (const auto* adds = dynamic_cast<const AddToBuffer*>(hook.get())) return adds->buffer();
  const Tensor& there = weight.grad();
  return there.defined() && !there.is_sparse() && there.scalar_type() == weight.scalar_type() ? there : Tensor();
}

}  // namespace hanok
