// Attention on a GPU, by every kernel that it has, against the CPU in f64.
#include <c10/core/CachingDeviceAllocator.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "model/kernels/attention.h"
#include "model/kernels/attention_aten.h"
#include "model/kernels/attention_cudnn.h"
#include "tests/support/close.h"

namespace hanok {
namespace {

struct Case {
  std::vector<int> starts;
  int64_t heads, kv_heads, width;
  bool causal;
};

/// Odd lengths, empty segments, one row, many segments, the widths of decoders (64, 128), towers (72, 80) and tests.
const Case kCases[] = {
    {{0, 300}, 4, 2, 128, true},
    {{0, 1, 2, 130, 130, 131, 517}, 8, 2, 128, true},
    {{0, 64, 128, 192, 1000}, 4, 4, 64, true},
    {{0, 256, 512, 1088}, 4, 4, 72, false},
    {{0, 37, 1700}, 2, 2, 80, false},
    {{0, 3, 9, 48}, 4, 2, 16, true},
    {{0, 150, 400}, 2, 1, 20, true},
    {{0, 61, 90}, 3, 3, 12, false},
    {{0, 5, 11, 17, 23, 29, 35, 41, 47, 53, 59, 65, 71, 77, 83, 89, 95, 101}, 2, 1, 32, true},
};

Segments segments_of(const std::vector<int>& starts, at::Device device, AttentionKernel kernel) {
  return make_segments(at::tensor(starts, at::kInt), starts.back(), device, kernel);
}

struct Values {
  Tensor out, grad;
};

Values run(const Case& c, const Tensor& qkv_in, const Tensor& dout, AttentionKernel kernel) {
  Tensor qkv = qkv_in.detach().clone().requires_grad_(true);
  const Segments segments = segments_of(c.starts, qkv.device(), kernel);
  const Tensor out = segment_attention(qkv, c.heads, c.kv_heads, segments, c.causal);
  out.backward(dout.to(out.options()));
  return {out.detach(), qkv.grad()};
}

bool has_kernel(const Case& c, const Tensor& qkv, AttentionKernel kernel) {
  const AttentionSizes sizes{c.heads, c.kv_heads, c.width, c.causal};
  if (kernel == AttentionKernel::kCudnn)
    return attention_cudnn::runs(qkv, segments_of(c.starts, qkv.device(), kernel), sizes);
  if (kernel == AttentionKernel::kFlash) return attention_aten::best_kernel(qkv, sizes) == kernel;
  if (kernel == AttentionKernel::kEfficient) return qkv.scalar_type() != at::kDouble;
  return true;
}

class AttentionOnDevice : public testing::TestWithParam<AttentionKernel> {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  }
};

TEST_P(AttentionOnDevice, EqualsTheCpuInValueAndGradient) {
  int ran = 0;
  for (const Case& c : kCases) {
    at::manual_seed(7);
    const int64_t rows = c.starts.back();
    for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
      const Tensor host =
          at::randn({rows, (c.heads + 2 * c.kv_heads) * c.width}, at::kDouble).to(dtype).to(at::kDouble);
      const Tensor dout = at::randn({rows, c.heads * c.width}, at::kDouble).to(dtype).to(at::kDouble);
      const Tensor qkv = host.to(dtype).to(at::kCUDA);
      if (!has_kernel(c, qkv, GetParam())) continue;
      ++ran;
      const Values expected = run(c, host, dout, AttentionKernel::kAuto), got = run(c, qkv, dout, GetParam());
      // f32 adds up the keys of a segment; 16 bits round what enters and what leaves, and sums are f32 within.
      const int64_t n =
          dtype == at::kFloat ? segments_of(c.starts, at::kCPU, GetParam()).longest : c.heads / c.kv_heads;
      const Closeness out = compare(got.out, expected.out, n, dtype);
      const Closeness grad = compare(got.grad, expected.grad, n, dtype);
      EXPECT_TRUE(out.ok) << at::toString(dtype) << " width " << c.width << " rows " << rows << ": " << out.text();
      EXPECT_TRUE(grad.ok) << at::toString(dtype) << " width " << c.width << " rows " << rows << ": " << grad.text();
      // The comparison sees an error of eight times its tolerance in one value.
      Tensor wrong = got.grad.clone();
      wrong.view({-1})[0] += 8 * grad.tolerance;
      EXPECT_FALSE(compare(wrong, expected.grad, n, dtype).ok);
    }
  }
  const bool runs_all = GetParam() == AttentionKernel::kPlain || GetParam() == AttentionKernel::kAuto;
  EXPECT_EQ(ran, runs_all ? 3 * static_cast<int>(std::size(kCases)) : ran);
  if (ran == 0) GTEST_SKIP() << "this machine lacks the kernel";
}

TEST_P(AttentionOnDevice, ANeighbourChangesNothing) {
  const Case c{{0, 200, 450, 700}, 4, 2, 64, true};
  at::manual_seed(8);
  const Tensor qkv = at::randn({700, 8 * 64}, at::device(at::kCUDA).dtype(at::kBFloat16));
  if (!has_kernel(c, qkv, GetParam())) GTEST_SKIP() << "this machine lacks the kernel";
  const Tensor dout = at::randn({700, 4 * 64}, qkv.options());
  Tensor other = qkv.clone();
  other.narrow(0, 0, 200).normal_();
  other.narrow(0, 450, 250).normal_();
  const Values a = run(c, qkv, dout, GetParam()), b = run(c, other, dout, GetParam());
  const auto middle = [](const Tensor& x) { return x.narrow(0, 200, 250); };
  EXPECT_TRUE(at::equal(middle(a.out), middle(b.out)));
  const double scale = middle(a.grad).abs().max().item<double>();
  EXPECT_LE((middle(a.grad) - middle(b.grad)).abs().max().item<double>(), 2 * epsilon_of(at::kBFloat16) * scale);
}

/// Room that a backward takes beyond what is there before it, in queries of f32.
double room_of_backward(int64_t heads, int64_t kv_heads) {
  const int64_t rows = 4096, width = 128;
  const Tensor qkv = at::randn({rows, (heads + 2 * kv_heads) * width}, at::device(at::kCUDA).dtype(at::kBFloat16))
                         .requires_grad_(true);
  const Tensor dout = at::randn({rows, heads * width}, qkv.options());
  const std::vector<int> starts{0, 1000, static_cast<int>(rows)};
  const Segments segments = segments_of(starts, qkv.device(), AttentionKernel::kCudnn);
  const Tensor out = segment_attention(qkv, heads, kv_heads, segments, true);
  auto* allocator = c10::getDeviceAllocator(at::kCUDA);
  allocator->resetPeakStats(0);
  const auto before = allocator->getDeviceStats(0).allocated_bytes[0].current;
  out.backward(dout);
  const auto peak = allocator->getDeviceStats(0).allocated_bytes[0].peak;
  return static_cast<double>(peak - before) / static_cast<double>(4 * rows * heads * width);
}

TEST(AttentionOnDevice, SharedHeadsNeedNoRoomForGaps) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine lacks a GPU";
  const Tensor qkv = at::zeros({8, 12 * 128}, at::device(at::kCUDA).dtype(at::kBFloat16));
  if (!has_kernel({{0, 8}, 8, 2, 128, true}, qkv, AttentionKernel::kCudnn))
    GTEST_SKIP() << "this machine lacks the kernel";
  // The gradient, 2 bytes; dq in f32 with its strides; with shared heads dk and dv of each, and rows of them, 2 bytes.
  EXPECT_NEAR(room_of_backward(8, 2), 1.5 / 2 + 1.5 + 2 + 0.5 / 2, 0.1);
  EXPECT_NEAR(room_of_backward(8, 8), 3.0 / 2 + 3, 0.1);
}

INSTANTIATE_TEST_SUITE_P(Kernels,
                         AttentionOnDevice,
                         testing::Values(AttentionKernel::kAuto,
                                         AttentionKernel::kCudnn,
                                         AttentionKernel::kFlash,
                                         AttentionKernel::kEfficient,
                                         AttentionKernel::kPlain));

}  // namespace
}  // namespace hanok
