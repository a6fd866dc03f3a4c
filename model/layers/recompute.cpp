#include "model/layers/recompute.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "base/error.h"
#include "parallel/kept.h"

namespace hanok {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

/// How one layer is to be run again: its input stands first in what was kept, results follow.
struct Rerun : torch::CustomClassHolder {
  LayerRuns::Block run;
  Keep keep = Keep::kInput;
  bool ends_in_product = true;
  HostLane* lane = nullptr;  // of the forward; null: kept on the device
  std::shared_ptr<Parked> parked;
  bool input_needs_gradient = false;
};

struct RunAgain : torch::autograd::Function<RunAgain> {
  // inputs: x, then the weights
  static Tensor forward(AutogradContext* ctx, const c10::intrusive_ptr<Rerun>& how, at::TensorList inputs) {
    const Tensor& x = inputs[0];
    KeptResults results;
    Tensor y;
    {
      RecordResults record(how->keep);
      y = how->run(x);
      results = record.finish(how->ends_in_product);
    }
    results.insert(results.begin(), x.detach());
    how->input_needs_gradient = x.requires_grad();
    how->parked = std::make_shared<Parked>(std::move(results));
    if (how->lane) how->lane->add(how->parked);
    how->lane = nullptr;
    ctx->saved_data["how"] = c10::IValue::make_capsule(how);
    ctx->save_for_backward(inputs.slice(1).vec());
    return y;
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list grads) {
    auto& how = static_cast<Rerun&>(*ctx->saved_data["how"].toCapsule());
    const tensor_list weights = ctx->get_saved_variables();
    HANOK_REQUIRE(how.parked, kShape) << "recomputation: got a second backward of a layer, expected one";
    KeptResults results = std::exchange(how.parked, nullptr)->take();
    const Tensor x = results.front().set_requires_grad(how.input_needs_gradient);
    results.erase(results.begin());
    Tensor y;
    {
      at::AutoGradMode with_grad(true);
      const TakeResults take(results, x.device());
      y = how.run(x);
    }
    how.run = nullptr;
    tensor_list wanted;
    if (how.input_needs_gradient) wanted.push_back(x);
    for (const Tensor& weight : weights)
      if (weight.requires_grad()) wanted.push_back(weight);
    const auto found = torch::autograd::grad({y},
                                             wanted,
                                             {grads[0]},
                                             /*retain_graph=*/std::nullopt,
                                             /*create_graph=*/false,
                                             /*allow_unused=*/true);
    tensor_list result(2 + weights.size());  // of `how`, x, the weights
    size_t next = 0;
    if (how.input_needs_gradient) result[1] = found[next++];
    for (size_t i = 0; i < weights.size(); ++i)
      if (weights[i].requires_grad()) result[2 + i] = found[next++];
    return result;
  }
};

}  // namespace

Tensor LayerRuns::operator()(const Block& run, const Tensor& x, const Layer& layer) {
  const auto trains = [](const Tensor& t) { return t.requires_grad(); };
  const bool has_backward =
      at::GradMode::is_enabled() && (x.requires_grad() || std::ranges::any_of(layer.weights, trains));
  if (!how_.applies_to(layer.index) || !has_backward) return run(x);
  auto how = c10::make_intrusive<Rerun>();
  how->run = run;
  how->keep = how_.keep;
  how->ends_in_product = layer.ends_in_product;
  if (how_.offload) how->lane = &lane_;
  std::vector<Tensor> inputs{x};
  inputs.insert(inputs.end(), layer.weights.begin(), layer.weights.end());
  return RunAgain::apply(how, at::TensorList(inputs));
}

void LayerRuns::finish(bool backward_is_next) {
  lane_.finish(backward_is_next);
}

}  // namespace hanok
