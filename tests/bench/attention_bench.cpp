// Attention on packed rows: TFLOP/s of every kernel of this GPU, forward and backward. Only the allowed pairs count,
// halved where causal. Prints a table; nothing is asserted. usage: attention_bench [rows]
#include <c10/cuda/CUDAFunctions.h>

#include <cstdio>
#include <random>

#include "base/clock.h"
#include "model/kernels/attention.h"

namespace {

using hanok::AttentionKernel;
using hanok::Tensor;

template <class F>
double median_s(const F& f) {
  std::vector<double> times;
  for (int i = 0; i < 9; ++i) {
    c10::cuda::device_synchronize();
    const double began = hanok::now_s();
    f();
    c10::cuda::device_synchronize();
    if (i >= 2) times.push_back(hanok::now_s() - began);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

std::vector<int> random_starts(int rows, double mean, std::mt19937& random) {
  std::exponential_distribution<double> length(1 / mean);
  std::vector<int> starts{0};
  while (starts.back() < rows)
    starts.push_back(std::min(rows, starts.back() + std::max(16, static_cast<int>(length(random)))));
  return starts;
}

std::vector<int> equal_starts(int count, int size) {
  std::vector<int> starts{0};
  for (int i = 0; i < count; ++i) starts.push_back(starts.back() + size);
  return starts;
}

void bench(
    const char* name, const std::vector<int>& starts, int64_t heads, int64_t kv_heads, int64_t width, bool causal) {
  const int64_t rows = starts.back();
  Tensor qkv = at::randn({rows, (heads + 2 * kv_heads) * width}, at::device(at::kCUDA).dtype(at::kBFloat16))
                   .requires_grad_(true);
  const Tensor dout = at::randn({rows, heads * width}, qkv.options());
  double pairs = 0;
  for (size_t i = 1; i < starts.size(); ++i) pairs += std::pow(starts[i] - starts[i - 1], 2);
  const double flops = 4 * pairs * static_cast<double>(heads * width) * (causal ? 0.5 : 1);
  std::printf("%-34s %4zu segments", name, starts.size() - 1);
  for (const char* kernel : {"cudnn", "flash"}) {
    const hanok::Segments segments =
        hanok::make_segments(at::tensor(starts, at::kInt), rows, at::kCUDA, hanok::attention_kernel(kernel));
    Tensor out;
    const double forward = median_s([&] { out = hanok::segment_attention(qkv, heads, kv_heads, segments, causal); });
    const double backward = median_s([&] {
      out.backward(dout, /*retain_graph=*/true);
      qkv.mutable_grad().reset();
    });
    std::printf("   %s %4.0f / %4.0f TF, %6.0f / %6.0f us",
                kernel,
                flops / forward / 1e12,
                2.5 * flops / backward / 1e12,
                forward * 1e6,
                backward * 1e6);
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const int rows = argc > 1 ? std::atoi(argv[1]) : 8192;
  std::mt19937 random(1);
  for (const bool deterministic : {false, true}) {
    at::globalContext().setDeterministicAlgorithms(deterministic, true);
    std::printf("deterministic: %s\n", deterministic ? "yes" : "no");
    bench("decoder 32/8 x128, one sample", {0, rows}, 32, 8, 128, true);
    for (const double mean : {4000., 1000., 300.})
      bench("decoder 32/8 x128, random", random_starts(rows, mean, random), 32, 8, 128, true);
    bench("decoder 16/4 x128, random", random_starts(rows, 1000, random), 16, 4, 128, true);
    bench("tower 16 x72, images of 2304", equal_starts(4, 2304), 16, 16, 72, false);
    bench("tower 16 x72, images of 256", equal_starts(36, 256), 16, 16, 72, false);
    bench("tower 16 x72, images of 64", equal_starts(144, 64), 16, 16, 72, false);
    bench("tower 8 x72, images of 1024", equal_starts(9, 1024), 8, 8, 72, false);
  }
}
