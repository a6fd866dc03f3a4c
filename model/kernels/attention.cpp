#include "model/kernels/attention.h"

#include <ATen/Context.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"
#include "base/log.h"
#include "base/upload.h"
#include "model/kernels/attention_aten.h"
#include "model/kernels/attention_cpu.h"
#include "model/kernels/attention_cudnn.h"
#include "parallel/kept.h"

namespace hanok {
namespace {

constexpr std::string_view kNames[] = {"auto", "cudnn", "flash", "efficient", "plain"};
constexpr std::string_view kWays[] = {"auto", "gather", "ring", "heads"};

struct SegmentsHolder : torch::CustomClassHolder {
  explicit SegmentsHolder(Segments s) : segments(std::move(s)) {}
  Segments segments;
};

/// The two back-ends that have a backward of their own; those of libtorch are differentiated by libtorch.
struct OwnAttention : torch::autograd::Function<OwnAttention> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& qkv_in,
                        const Segments& segments,
                        const AttentionSizes& sizes) {
    const Tensor qkv = qkv_in.contiguous();
    const auto results = kept_attention([&]() -> std::vector<Tensor> {
      const auto [out, log_sum] = qkv.is_cpu() ? attention_cpu::forward(qkv, segments.starts, sizes)
                                               : attention_cudnn::forward(qkv, segments, sizes);
      return {out, log_sum};
    });
    const Tensor &out = results[0], &log_sum = results[1];
    ctx->save_for_backward({qkv, out, log_sum});
    ctx->saved_data["segments"] = c10::IValue::make_capsule(c10::make_intrusive<SegmentsHolder>(segments));
    ctx->saved_data["heads"] = sizes.heads;
    ctx->saved_data["kv_heads"] = sizes.kv_heads;
    ctx->saved_data["causal"] = sizes.causal;
    return out;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &qkv = saved[0], &out = saved[1], &log_sum = saved[2], dout = grads[0].contiguous();
    const Segments& segments = static_cast<SegmentsHolder&>(*ctx->saved_data["segments"].toCapsule()).segments;
    const int64_t heads = ctx->saved_data["heads"].toInt(), kv_heads = ctx->saved_data["kv_heads"].toInt();
    const AttentionSizes sizes{
        heads, kv_heads, qkv.size(1) / (heads + 2 * kv_heads), ctx->saved_data["causal"].toBool()};
    const Tensor dqkv = qkv.is_cpu() ? attention_cpu::backward(dout, qkv, out, log_sum, segments.starts, sizes)
                                     : attention_cudnn::backward(dout, qkv, out, log_sum, segments, sizes);
    return {dqkv, Tensor(), Tensor()};
  }
};

/// Measured on H200 (cluster/bench/first_contact.md): cuDNN's graph kernels are 1.3 to 2 times flash but for very short
/// segments, and their deterministic backward is several times slower than that of flash.
bool cudnn_is_faster(const Segments& segments) {
  constexpr int64_t kShort = 128;
  return segments.longest > kShort && !at::globalContext().deterministicAlgorithms();
}

/// The one place that chooses. Before Hopper libtorch's own judgement of device, dtype and widths is taken.
AttentionKernel choose(const Tensor& qkv_TX, const Segments& segments, const AttentionSizes& sizes) {
  switch (segments.kernel) {
    case AttentionKernel::kAuto:
      if (cudnn_is_faster(segments) && attention_cudnn::runs(qkv_TX, segments, sizes)) return AttentionKernel::kCudnn;
      return attention_aten::best_kernel(qkv_TX, sizes);
    case AttentionKernel::kCudnn:
      HANOK_REQUIRE(attention_cudnn::runs(qkv_TX, segments, sizes), kConfig)
          << "attention: got cudnn for " << at::toString(qkv_TX.scalar_type()) << " heads of width " << sizes.width
          << ", expected a kernel that this build and GPU can run; key stage.attention; set attention: auto";
      return AttentionKernel::kCudnn;
    case AttentionKernel::kFlash:
      HANOK_REQUIRE(attention_aten::best_kernel(qkv_TX, sizes) == AttentionKernel::kFlash, kConfig)
          << "attention: got flash for " << at::toString(qkv_TX.scalar_type()) << " heads of width " << sizes.width
          << ", expected a kernel that this GPU can run; key stage.attention; set attention: auto";
      return AttentionKernel::kFlash;
    default: return segments.kernel;
  }
}

/// One line for every kernel that is used: dtypes and widths of one process may differ.
void log_choice_once(AttentionKernel kernel) {
  static std::atomic<unsigned> logged{0};
  const unsigned bit = 1u << static_cast<unsigned>(kernel);
  if (logged.fetch_or(bit) & bit) return;
  HANOK_LOG_RANK0(INFO) << "attention: " << kNames[static_cast<int>(kernel)] << " kernels";
}

}  // namespace

AttentionKernel attention_kernel(std::string_view name) {
  for (size_t i = 0; i < std::size(kNames); ++i)
    if (kNames[i] == name) return static_cast<AttentionKernel>(i);
  HANOK_FAIL(kConfig) << "attention: got " << name << ", expected one of " << kNames << "; key stage.attention";
}

ContextWay context_way(std::string_view name) {
  for (size_t i = 0; i < std::size(kWays); ++i)
    if (kWays[i] == name) return static_cast<ContextWay>(i);
  HANOK_FAIL(kConfig) << "context: got " << name << ", expected one of " << kWays << "; key parallel.context";
}

Segments make_segments(const Tensor& starts, int64_t rows, at::Device device, AttentionKernel kernel) {
  HANOK_REQUIRE(starts.defined() && starts.is_cpu() && starts.scalar_type() == at::kInt && starts.dim() == 1 &&
                    starts.size(0) >= 1 && starts.is_contiguous(),
                kShape)
      << "segment starts: expected a host tensor of int32 [S + 1]";
  Segments segments{.starts = starts, .kernel = kernel};
  const int32_t* data = starts.const_data_ptr<int32_t>();
  const int64_t count = starts.size(0) - 1;
  HANOK_REQUIRE(data[0] == 0 && data[count] == rows, kShape)
      << "segment starts: got " << data[0] << " to " << data[count] << ", expected 0 to " << rows << " rows";
  for (int64_t s = 0; s < count; ++s) {
    HANOK_REQUIRE(data[s] <= data[s + 1], kShape)
        << "segment starts: got " << data[s] << " before " << data[s + 1] << ", expected rising numbers";
    segments.longest = std::max<int64_t>(segments.longest, data[s + 1] - data[s]);
  }
  segments.device_starts = upload(starts, device);
  if (!device.is_cpu()) segments.ragged = attention_cudnn::make_ragged_offsets();
  return segments;
}

Tensor segment_attention(
    const Tensor& qkv_TX, int64_t num_heads, int64_t num_kv_heads, const Segments& segments, bool causal) {
  const int64_t total = num_heads + 2 * num_kv_heads;
  HANOK_REQUIRE(num_heads > 0 && num_kv_heads > 0 && num_heads % num_kv_heads == 0 && qkv_TX.size(1) % total == 0,
                kShape)
      << "attention: got rows of width " << qkv_TX.size(1) << " for " << num_heads << " query and " << num_kv_heads
      << " key/value heads, expected query heads a multiple of key/value heads and a width that all share";
  const AttentionSizes sizes{num_heads, num_kv_heads, qkv_TX.size(1) / total, causal};
  if (qkv_TX.is_cpu()) return OwnAttention::apply(qkv_TX, segments, sizes);
  const AttentionKernel kernel = choose(qkv_TX, segments, sizes);
  log_choice_once(kernel);
  return kernel == AttentionKernel::kCudnn ? OwnAttention::apply(qkv_TX, segments, sizes)
                                           : attention_aten::attention(qkv_TX, segments, sizes, kernel);
}

}  // namespace hanok
