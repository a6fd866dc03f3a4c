#include "model/layers/recompute.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace hanok {
namespace {

using Block = std::function<Tensor(const Tensor&)>;

struct Holder : torch::CustomClassHolder {
  explicit Holder(Block block) : run(std::move(block)) {}
  Block run;
};

struct Recompute : torch::autograd::Function<Recompute> {
  // inputs: x, then the weights
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Block& block, at::TensorList inputs) {
    ctx->saved_data["block"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(block));
    ctx->save_for_backward(inputs.vec());
    return block(inputs[0]);
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto& block = static_cast<Holder&>(*ctx->saved_data["block"].toCapsule()).run;
    const Tensor x = saved[0].detach().set_requires_grad(saved[0].requires_grad());
    Tensor y;
    {
      at::AutoGradMode with_grad(true);
      y = block(x);
    }
    torch::autograd::tensor_list wanted;
    for (size_t i = 0; i < saved.size(); ++i)
      if (saved[i].requires_grad()) wanted.push_back(i == 0 ? x : saved[i]);
    const auto found = torch::autograd::grad({y},
                                             wanted,
                                             {grads[0]},
                                             /*retain_graph=*/std::nullopt,
                                             /*create_graph=*/false,
                                             /*allow_unused=*/true);
    torch::autograd::tensor_list result(1 + saved.size());
    for (size_t i = 0, next = 0; i < saved.size(); ++i)
      if (saved[i].requires_grad()) result[i + 1] = found[next++];
    return result;
  }
};

}  // namespace

Tensor recompute(const Block& block, const Tensor& x, const std::vector<Tensor>& weights) {
  std::vector<Tensor> inputs{x};
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  return Recompute::apply(block, at::TensorList(inputs));
}

}  // namespace hanok
