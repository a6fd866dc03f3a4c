// The whole model on a GPU against the CPU, whose numbers the other tests hold: values, loss and the gradient of every
// weight.
#include <gtest/gtest.h>

#include "base/error.h"
#include "tests/model/model_on_device.h"
#include "tests/support/close.h"

namespace hanok {
namespace {

/// Several query heads to a key/value head, and a vocabulary in chunks.
ModelConfig larger_config() {
  ModelConfig config = device_config();
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
  const ModelConfig config = larger_config();
  const TinyRow row = tiny_row(config, 48, true, at::kDouble);
  const ModelResult expected = run_model(config, row, at::kDouble, at::kCPU);
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const double bound = dtype == at::kDouble ? 1e-6 : 1e-4;  // rotary tables are f32 in the tower on both
    for (const int64_t every : {0, 1}) {
      const ModelResult got = run_model(config, row, dtype, at::kCUDA, {.every = every});
      EXPECT_LE(relative_error(got.y, expected.y), bound);
      EXPECT_LE(relative_error(got.loss, expected.loss), bound);
      for (size_t i = 0; i < got.grads.size(); ++i)
        EXPECT_LE(relative_error(got.grads[i], expected.grads[i]), bound) << at::toString(dtype) << " weight " << i;
    }
  }
}

TEST_F(OnDevice, HalfPrecisionIsAsNearAsOnTheCpu) {
  const ModelConfig config = larger_config();
  const TinyRow row = tiny_row(config, 48, true, at::kDouble);
  const ModelResult exact = run_model(config, row, at::kDouble, at::kCPU),
                    cpu = run_model(config, row, at::kBFloat16, at::kCPU);
  const ModelResult got = run_model(config, row, at::kBFloat16, at::kCUDA);
  expect_as_near(got, cpu, exact);
}

// Kernels add in an order of their own each time: equal but for the rounding of f32. Offloaded layers travel on other
// streams; what is read too early, or written over while it is read, would be far off.
TEST_F(OnDevice, RecomputationAndOffloadGiveTheSameGradients) {
  ModelConfig config = larger_config();
  config.decoder.layers = 8;
  config.tower.depth = 6;
  const TinyRow row = tiny_row(config, 160, true, at::kDouble);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const ModelResult expected = run_model(config, row, dtype, at::kCUDA);
    for (const Recompute& how : {Recompute{.every = 1},
                                 {.every = 1, .keep = Keep::kAttention},
                                 {.every = 1, .keep = Keep::kResults},
                                 {.every = 1, .offload = true},
                                 {.every = 1, .keep = Keep::kAttention, .offload = true},
                                 {.every = 1, .keep = Keep::kResults, .offload = true},
                                 {.every = 2, .keep = Keep::kResults, .offload = true}})
      for (int repeat = 0; repeat < 3; ++repeat) {
        const ModelResult got = run_model(config, row, dtype, at::kCUDA, how);
        for (size_t i = 0; i < got.grads.size(); ++i) {
          const std::string where = concat(
              at::toString(dtype), " weight ", i, " keeps ", static_cast<int>(how.keep), how.offload ? " offload" : "");
          if (dtype == at::kFloat)
            EXPECT_LE(relative_error(got.grads[i], expected.grads[i]), 1e-4) << where;
          else
            EXPECT_GE(cosine(got.grads[i], expected.grads[i]), 0.999) << where;
        }
      }
  }
}

// What lies below the first layer that trains is neither kept nor fetched: a copy that nobody waits for would come into
// memory that has been given to somebody else. Rows are many, so that copies take longer than the host does.
TEST_F(OnDevice, OffloadAboveFrozenLayersGivesTheSameGradients) {
  ModelConfig config = larger_config();
  config.decoder.layers = 6;
  const TinyRow row = tiny_row(config, 6000, true, at::kDouble);
  const char* trainable = "decoder.layers.3.**";
  for (const Keep keep : {Keep::kInput, Keep::kAttention, Keep::kResults}) {
    const Recompute here{.every = 1, .keep = keep}, away{.every = 1, .keep = keep, .offload = true};
    const ModelResult expected = run_model(config, row, at::kFloat, at::kCUDA, here, nullptr, trainable);
    for (int repeat = 0; repeat < 5; ++repeat) {
      const ModelResult got = run_model(config, row, at::kFloat, at::kCUDA, away, nullptr, trainable);
      for (size_t i = 0; i < got.grads.size(); ++i) {
        ASSERT_EQ(got.grads[i].defined(), expected.grads[i].defined()) << "weight " << i;
        if (!got.grads[i].defined()) continue;
        EXPECT_LE(relative_error(got.grads[i], expected.grads[i]), 1e-4) << "weight " << i;
      }
    }
  }
}

}  // namespace
}  // namespace hanok
