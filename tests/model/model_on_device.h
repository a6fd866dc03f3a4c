// A small model in one dtype on one device: what it computes, and the gradient of every weight, in f64 on the CPU.
#pragma once

#include <memory>
#include <vector>

#include "tests/model/gradients.h"
#include "tests/model/tiny.h"

namespace hanok {

struct ModelResult {
  Tensor y, loss, aux;  // aux: of experts
  std::vector<Tensor> grads;
};

/// Head widths that the kernels of 16-bit attention take.
inline ModelConfig device_config() {
  ModelConfig config = tiny_config();
  config.decoder.head_dim = 16;
  config.decoder.mrope_section = {4, 2, 2};
  return config;
}

/// The same weights for every dtype and device. `routing`: of models with experts; may be null. `trainable`: glob of
/// what trains; others have no gradient.
inline ModelResult run_model(const ModelConfig& config,
                             const TinyRow& row,
                             at::ScalarType dtype,
                             at::Device device,
                             const Recompute& recompute = {},
                             std::shared_ptr<Routing> routing = nullptr,
                             const char* trainable = "**") {
  Vlm source(config, make_single_groups(), at::kDouble, at::kCPU);
  randomise(source, 21);
  Vlm model(config, make_single_groups(), dtype, device);
  {
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < source.params().size(); ++i)
      model.params()[i].value.copy_(source.params()[i].value.to(at::kBFloat16));  // values that every dtype holds
  }
  for (Param& param : model.params()) {
    param.trainable = glob_match(trainable, param.spec.name);
    param.value.set_requires_grad(param.trainable);
  }
  model.set_execution({.recompute = recompute});
  TinyRow here = row;
  ModelInput& input = here.input;
  for (Tensor* x :
       {&input.tokens_T, &input.position_3T, &input.pixels_PC, &input.vision_index_M, &here.targets_T, &here.weight_T})
    *x = x->to(device);
  if (routing) routing->row_T = routing->row_T.to(device);
  input.routing = routing;
  const ModelOutput output = model.forward(input);
  const Tensor loss = weighted_loss(model, output, here);
  loss.backward();
  const auto on_host = [](const Tensor& x) { return x.detach().cpu().to(at::kDouble); };
  ModelResult result{.y = on_host(output.y_TD), .loss = on_host(loss)};
  if (routing) result.aux = on_host(routing->aux);
  for (const Param& param : model.params())
    result.grads.push_back(param.trainable ? on_host(param.value.grad()) : Tensor());
  return result;
}

inline double relative_error(const Tensor& got, const Tensor& expected) {
  return (got - expected).abs().max().item<double>() / expected.abs().max().item<double>();
}

inline double cosine(const Tensor& a, const Tensor& b) {
  return (a.flatten().dot(b.flatten()) / (a.norm() * b.norm())).item<double>();
}

/// In 16 bits: as near to `exact` as the CPU comes.
inline void expect_as_near(const ModelResult& got, const ModelResult& cpu, const ModelResult& exact) {
  const auto is_as_near = [](const Tensor& x, const Tensor& other, const Tensor& reference) {
    return 1 - cosine(x, reference) <= 4 * (1 - cosine(other, reference)) + 1e-4;
  };
  EXPECT_TRUE(is_as_near(got.y, cpu.y, exact.y)) << cosine(got.y, exact.y) << " vs " << cosine(cpu.y, exact.y);
  for (size_t i = 0; i < got.grads.size(); ++i)
    EXPECT_TRUE(is_as_near(got.grads[i], cpu.grads[i], exact.grads[i]))
        << "weight " << i << ": " << cosine(got.grads[i], exact.grads[i]) << " vs "
        << cosine(cpu.grads[i], exact.grads[i]);
}

}  // namespace hanok
