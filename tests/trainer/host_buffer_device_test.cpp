// Host memory that a GPU copies to beside its work, and checkpoints that are written from it.
#include <ATen/cuda/Sleep.h>
#include <c10/cuda/CUDAStream.h>
#include <gtest/gtest.h>

#include "parallel/init.h"
#include "tests/dataio/temp_folder.h"
#include "tests/model/tiny.h"
#include "trainer/checkpoint.h"
#include "trainer/fill.h"
#include "trainer/host_buffer.h"

namespace hanok {
namespace {

constexpr int64_t kPiece = int64_t{1} << 22;
constexpr int64_t kBytes = 5 * kPiece + 4096;
const at::Device kGpu(at::kCUDA, 0);

class HostBufferOnDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  }
};

bool is_pinned(const Tensor& x) {  // libtorch's own is_pinned() knows the memory of its allocator alone
  cudaPointerAttributes of = {};
  return cudaPointerGetAttributes(&of, x.const_data_ptr()) == cudaSuccess && of.type == cudaMemoryTypeHost;
}

void await(HostBuffer& buffer) {
  if (const auto failure = buffer.making().take()) throw *failure;
}

TEST_F(HostBufferOnDevice, FillingsComeToTheDeviceByManyThreads) {
  for (const at::ScalarType wanted : {at::kFloat, at::kBFloat16}) {
    std::vector<Filling> fillings;
    for (int which = 0; which < 40; ++which)
      fillings.push_back({at::full({1000 + 17 * which}, -1, at::TensorOptions().dtype(wanted).device(kGpu)),
                          at::kFloat,
                          [which](int64_t begin, Tensor& host) {
                            host.copy_((at::arange(begin, begin + host.numel()) + which) % 256);
                          }});
    fill(fillings, kGpu, {.threads = 6, .stretch = 100});
    for (int which = 0; which < 40; ++which) {
      const Tensor& to = fillings[which].to;
      EXPECT_TRUE(at::equal(to.cpu().to(at::kLong), (at::arange(to.numel()) + which) % 256)) << which;
    }
  }
}

TEST_F(HostBufferOnDevice, IsPinnedInEveryPieceAndReleasedAtItsEnd) {
  for (int round = 0; round < 5; ++round) {  // mostly at the same place: what was not released would be refused
    HostBuffer buffer(kBytes, kGpu, "a test", {.piece_bytes = kPiece});
    await(buffer);
    EXPECT_EQ(buffer.pinned_bytes(), buffer.bytes()) << round;
    const Tensor all = buffer.carve(at::kByte, buffer.bytes());
    for (int64_t at = 0; at < buffer.bytes(); at += kPiece)
      EXPECT_TRUE(is_pinned(all.narrow(0, at, 1))) << at << " in round " << round;
  }
}

TEST_F(HostBufferOnDevice, TheHostDoesNotWaitForACopyOverAllPieces) {
  HostBuffer buffer(kBytes + 512, kGpu, "a test", {.piece_bytes = kPiece});
  await(buffer);
  const Tensor from =
      at::arange(kBytes / 2, at::TensorOptions(at::kLong).device(kGpu)).remainder(251).to(at::kBFloat16);
  buffer.carve(at::kByte, 1);
  const Tensor to = buffer.carve(at::kBFloat16, from.numel()).zero_();
  const auto stream = c10::cuda::getCurrentCUDAStream();
  stream.synchronize();
  at::cuda::sleep(1000000000);  // half a second
  buffer.copy(to, from);
  EXPECT_FALSE(stream.query()) << "the copy was waited for";
  stream.synchronize();
  EXPECT_TRUE(at::equal(to, from.cpu()));
}

struct Rank {
  Rank(at::Device device, uint64_t seed) : model(tiny_config(), groups, at::kBFloat16, device) {
    initialise(model, seed);
    for (Param& param : model.params()) param.trainable = true;
    grads.emplace(model.params(), groups, at::kFloat);
    optimizer.emplace(OptimizerConfig{}, model.params(), *grads);
  }
  std::vector<Tensor> state() {
    std::vector<Tensor> out = {optimizer->master(), optimizer->first_moment(), optimizer->second_moment()};
    for (const Param& param : model.params()) out.push_back(param.value.detach());
    return out;
  }
  const Groups groups = make_single_groups();
  Vlm model;
  std::optional<GradSync> grads;
  std::optional<AdamW> optimizer;
};

TEST_F(HostBufferOnDevice, ACheckpointHoldsWhatTheGpuHeldWhenItWasSaved) {
  const TempFolder temp;
  RunConfig config;
  config.out = temp.path();
  config.stages.resize(1);
  config.stages[0].name = "all";
  const RunFolder folder(config.out);
  for (const bool is_expected : {true, false}) {
    Rank rank(kGpu, 1), back(kGpu, 2);
    rank.optimizer->first_moment().copy_(rank.optimizer->master() * 2);  // what fills shards up stays 0 throughout
    rank.optimizer->second_moment().copy_(rank.optimizer->master().square());
    Checkpointer checkpoint(config, folder, rank.groups);
    for (int64_t step = 1; step <= 2; ++step) {  // the second one into the same memory
      if (is_expected) checkpoint.expect_save(rank.model, *rank.optimizer);
      std::vector<Tensor> expected;
      for (const Tensor& x : rank.state()) expected.push_back(x.clone());
      checkpoint.save({.step = step, .num_steps = 9}, rank.model, *rank.optimizer);
      checkpoint.finish();
      ASSERT_FALSE(checkpoint.failed());
      load_checkpoint(folder.checkpoint("all", step), back.model, *back.optimizer);
      for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(back.state()[i], expected[i])) << i;
      for (const Tensor& x : rank.state()) x.mul_(1.5);
    }
  }
}

}  // namespace
}  // namespace hanok
