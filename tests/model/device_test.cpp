// The whole model on a GPU against the CPU, whose numbers the other tests hold: values, loss and the gradient of every
// weight.
#include <gtest/gtest.h>

#include "base/error.h"
#include "tests/model/gradients.h"
#include "tests/model/tiny.h"
#include "tests/support/close.h"

namespace hanok {
namespace {

struct Result {
  Tensor y, loss;
  std::vector<Tensor> grads;
};

TinyRow to_device(TinyRow row, at::Device device) {
  ModelInput& input = row.input;
  for (Tensor* x :
       {&input.tokens_T, &input.position_3T, &input.pixels_PC, &input.vision_index_M, &row.targets_T, &row.weight_T})
    *x = x->to(device);
  return row;
}

Result run(const ModelConfig& config,
           const TinyRow& row,
           at::ScalarType dtype,
           at::Device device,
           const Recompute& recompute) {
  Vlm source(config, make_single_groups(), at::kDouble, at::kCPU);
  randomise(source, 21);
  Vlm model(config, make_single_groups(), dtype, device);
  {
    at::NoGradGuard no_grad;
    for (size_t i = 0; i < source.params().size(); ++i)
      model.params()[i].value.copy_(source.params()[i].value.to(at::kBFloat16));  // values that every dtype holds
  }
  model.set_execution({.recompute = recompute});
  const TinyRow here = to_device(row, device);
  const ModelOutput output = model.forward(here.input);
  const Tensor loss = weighted_loss(model, output, here);
  loss.backward();
  Result result{.y = output.y_TD.detach().cpu().to(at::kDouble), .loss = loss.detach().cpu().to(at::kDouble)};
  for (const Param& param : model.params()) result.grads.push_back(param.value.grad().cpu().to(at::kDouble));
  return result;
}

double relative_error(const Tensor& got, const Tensor& expected) {
  return (got - expected).abs().max().item<double>() / expected.abs().max().item<double>();
}

double cosine(const Tensor& a, const Tensor& b) {
  return (a.flatten().dot(b.flatten()) / (a.norm() * b.norm())).item<double>();
}

/// Head widths that the kernels of 16-bit attention take; several query heads to a key/value head.
ModelConfig device_config() {
  ModelConfig config = tiny_config();
  config.decoder.head_dim = 16;
  config.decoder.mrope_section = {4, 2, 2};
  config.decoder.vocab = 1000;
  return config;
}

class OnDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  }
};

TEST_F(OnDevice, DoubleAndSinglePrecisionEqualTheCpu) {
  const ModelConfig config = device_config();
  const TinyRow row = tiny_row(config, 48, true, at::kDouble);
  const Result expected = run(config, row, at::kDouble, at::kCPU, {});
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const double bound = dtype == at::kDouble ? 1e-6 : 1e-4;  // rotary tables are f32 in the tower on both
    for (const int64_t every : {0, 1}) {
      const Result got = run(config, row, dtype, at::kCUDA, {.every = every});
      EXPECT_LE(relative_error(got.y, expected.y), bound);
      EXPECT_LE(relative_error(got.loss, expected.loss), bound);
      for (size_t i = 0; i < got.grads.size(); ++i)
        EXPECT_LE(relative_error(got.grads[i], expected.grads[i]), bound) << at::toString(dtype) << " weight " << i;
    }
  }
}

TEST_F(OnDevice, HalfPrecisionIsAsNearAsOnTheCpu) {
  const ModelConfig config = device_config();
  const TinyRow row = tiny_row(config, 48, true, at::kDouble);
  const Result exact = run(config, row, at::kDouble, at::kCPU, {}), cpu = run(config, row, at::kBFloat16, at::kCPU, {});
  const Result got = run(config, row, at::kBFloat16, at::kCUDA, {});
  const auto is_as_near = [](const Tensor& x, const Tensor& other, const Tensor& reference) {
    return 1 - cosine(x, reference) <= 4 * (1 - cosine(other, reference)) + 1e-4;
  };
  EXPECT_TRUE(is_as_near(got.y, cpu.y, exact.y)) << cosine(got.y, exact.y) << " vs " << cosine(cpu.y, exact.y);
  for (size_t i = 0; i < got.grads.size(); ++i)
    EXPECT_TRUE(is_as_near(got.grads[i], cpu.grads[i], exact.grads[i]))
        << "weight " << i << ": " << cosine(got.grads[i], exact.grads[i]) << " vs "
        << cosine(cpu.grads[i], exact.grads[i]);
}

// Kernels add in an order of their own each time: equal but for the rounding of f32. Offloaded layers travel on other
// streams; what is read too early, or written over while it is read, would be far off.
TEST_F(OnDevice, RecomputationAndOffloadGiveTheSameGradients) {
  ModelConfig config = device_config();
  config.decoder.layers = 8;
  config.tower.depth = 6;
  const TinyRow row = tiny_row(config, 160, true, at::kDouble);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Result expected = run(config, row, dtype, at::kCUDA, {});
    for (const Recompute& how : {Recompute{.every = 1},
                                 {.every = 1, .selective = true},
                                 {.every = 1, .offload = true},
                                 {.every = 1, .selective = true, .offload = true},
                                 {.every = 2, .selective = true, .offload = true}})
      for (int repeat = 0; repeat < 3; ++repeat) {
        const Result got = run(config, row, dtype, at::kCUDA, how);
        for (size_t i = 0; i < got.grads.size(); ++i) {
          const std::string where = concat(at::toString(dtype),
                                           " weight ",
                                           i,
                                           how.selective ? " selective" : " full",
                                           how.offload ? " offload" : "");
          if (dtype == at::kFloat)
            EXPECT_LE(relative_error(got.grads[i], expected.grads[i]), 1e-4) << where;
          else
            EXPECT_GE(cosine(got.grads[i], expected.grads[i]), 0.999) << where;
        }
      }
  }
}

}  // namespace
}  // namespace hanok
