#include "parallel/grad_buffer.h"

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace hanok {
namespace {

namespace autograd = torch::autograd;

/// What a weight with a buffer carries. Moves what autograd left in .grad into the buffer, where that is not .grad
/// itself.
class BufferHook final : public autograd::PostAccumulateGradHook {
 public:
  BufferHook(const Tensor& weight, Tensor buffer, GradWatcher* watcher, int number)
      : buffer_(std::move(buffer)), watcher_(watcher), number_(number) {
    if (watcher_ == nullptr) return;
    // Hooks after accumulation run only where autograd was handed a gradient; those of the node always, once a
    // backward. The node lives as long as somebody holds it.
    node_ = autograd::impl::grad_accumulator(weight);
    key_ = node_->add_post_hook(std::make_unique<autograd::utils::LambdaPostHook>(
        [watcher, number](const autograd::variable_list& outputs, const autograd::variable_list&) {
          watcher->backward_passed(number);
          return outputs;
        }));
  }
  ~BufferHook() override {
    if (node_) node_->del_post_hook(key_);
  }
  void operator()(const Tensor& value) override {
    const at::NoGradGuard no_grad;
    if (!value.grad().defined() || value.grad().is_same(buffer_)) return;
    if (take_empty())
      buffer_.copy_(value.grad());
    else
      buffer_.add_(value.grad());
    value.mutable_grad().reset();
  }
  const Tensor& buffer() const { return buffer_; }
  void set_empty() { is_empty_ = true; }
  /// Whether nothing was added yet; from now on something is.
  bool take_empty() { return std::exchange(is_empty_, false); }
  GradWatcher* watcher() const { return watcher_; }
  int number() const { return number_; }

 private:
  Tensor buffer_;
  GradWatcher* watcher_;
  int number_;
  bool is_empty_ = false;
  std::shared_ptr<autograd::Node> node_;
  uintptr_t key_ = 0;
};

BufferHook* hook_of(const Tensor& weight) {
  if (!weight.defined() || !weight.is_leaf()) return nullptr;
  const auto& hook = autograd::impl::post_acc_grad_hooks(weight);
  return hook ? dynamic_cast<BufferHook*>(hook.get()) : nullptr;
}

}  // namespace

void attach_grad_buffer(const Tensor& weight, const Tensor& buffer, GradWatcher* watcher, int number) {
  const bool is_grad = weight.scalar_type() == buffer.scalar_type();
  if (is_grad) {
    weight.mutable_grad() = buffer;  // autograd adds to a .grad that is there already
  } else {
    weight.mutable_grad().reset();
  }
  const BufferHook* attached = hook_of(weight);
  if (attached && attached->buffer().is_same(buffer) && attached->watcher() == watcher) return;
  autograd::impl::set_post_acc_grad_hooks(weight, std::make_unique<BufferHook>(weight, buffer, watcher, number));
}

void detach_grad_buffer(const Tensor& weight) {
  autograd::impl::set_post_acc_grad_hooks(weight, nullptr);
  weight.mutable_grad().reset();
}

void begin_gradient(const Tensor& weight) {
  BufferHook* hook = hook_of(weight);
  if (!hook) return;
  if (weight.grad().defined())
    hook->buffer().zero_();
  else
    hook->set_empty();
}

void fill_untouched_gradients(const std::vector<Tensor>& weights) {
  std::vector<Tensor> untouched;
  for (const Tensor& weight : weights) {
    BufferHook* hook = hook_of(weight);
    if (hook && hook->take_empty()) untouched.push_back(hook->buffer());
  }
  if (!untouched.empty()) at::_foreach_zero_(untouched);
}

Tensor grad_buffer(const Tensor& weight) {
  const GradTarget target = grad_target(weight);
  if (target.is_empty) Tensor(target.buffer).zero_();
  return target.buffer;
}

GradTarget grad_target(const Tensor& weight) {
  if (BufferHook* hook = hook_of(weight)) return {hook->buffer(), hook->take_empty()};
  if (!weight.defined() || !weight.is_leaf()) return {};
  const Tensor& there = weight.grad();
  return {there.defined() && !there.is_sparse() && there.scalar_type() == weight.scalar_type() ? there : Tensor()};
}

void add_to_gradient(const Tensor& weight, const Tensor& share) {
  Tensor there = grad_buffer(weight);
  if (!there.defined() && weight.grad().defined()) there = weight.grad();
  if (there.defined()) {
    there.add_(share);
  } else {
    weight.mutable_grad() = share;
  }
}

void put_gradient_off(const Tensor& weight) {
  const BufferHook* hook = hook_of(weight);
  if (hook && hook->watcher()) hook->watcher()->gradient_put_off(hook->number());
}

void add_put_off_gradient(const Tensor& weight, const Tensor& share) {
  if (share.defined()) add_to_gradient(weight, share);
  const BufferHook* hook = hook_of(weight);
  if (hook && hook->watcher()) hook->watcher()->gradient_added(hook->number());
}

}  // namespace hanok
