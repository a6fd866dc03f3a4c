#include "model/kernels/attention.h"

#include <torch/csrc/autograd/custom_function.h>

#include <atomic>

#include "base/log.h"
#include "model/kernels/attention_cpu.h"
#include "model/kernels/dispatch.h"

namespace hanok {
namespace {

struct CpuAttention : torch::autograd::Function<CpuAttention> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& qkv_in,
                        const Tensor& starts,
                        int64_t heads,
                        int64_t kv_heads,
                        bool causal) {
    const Tensor qkv = qkv_in.contiguous();
    const attention_cpu::Sizes sizes{heads, kv_heads, qkv.size(1) / (heads + 2 * kv_heads), causal};
    auto [out, log_sum] = attention_cpu::forward(qkv, starts, sizes);
    ctx->save_for_backward({qkv, out, log_sum, starts});
    ctx->saved_data["heads"] = heads;
    ctx->saved_data["kv_heads"] = kv_heads;
    ctx->saved_data["causal"] = causal;
    return out;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const int64_t heads = ctx->saved_data["heads"].toInt(), kv_heads = ctx->saved_data["kv_heads"].toInt();
    const attention_cpu::Sizes sizes{
        heads, kv_heads, saved[0].size(1) / (heads + 2 * kv_heads), ctx->saved_data["causal"].toBool()};
    const Tensor dqkv = attention_cpu::backward(grads[0].contiguous(), saved[0], saved[1], saved[2], saved[3], sizes);
    return {dqkv, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

enum class CudaKernel { kFlash, kMemoryEfficient, kPlain };

/// What this device and dtype can do, as ATen judges it; cuDNN's answer implies a device that flash runs on as well.
CudaKernel choose_cuda_kernel(const Tensor& q_TNH, bool causal) {
  const Tensor probe = q_TNH.slice(0, 0, 1).transpose(0, 1).unsqueeze(0);  // [1, N, 1, H]
  switch (at::_fused_sdp_choice(probe, probe, probe, std::nullopt, 0.0, causal)) {
    case 1:
    case 3: return CudaKernel::kFlash;
    case 2: return CudaKernel::kMemoryEfficient;
    default: return CudaKernel::kPlain;
  }
}

/// One line for every kernel that is used; dtypes of one process may differ.
void log_choice_once(CudaKernel kernel) {
  static std::atomic<unsigned> logged{0};
  const unsigned bit = 1u << static_cast<unsigned>(kernel);
  if (logged.fetch_or(bit) & bit) return;
  HANOK_LOG_RANK0(INFO) << "attention: "
                        << (kernel == CudaKernel::kFlash             ? "flash"
                            : kernel == CudaKernel::kMemoryEfficient ? "memory-efficient"
                                                                     : "plain")
                        << " kernels of libtorch";
}

Tensor plain_attention(
    const Tensor& q_TNH, const Tensor& k_TNH, const Tensor& v_TNH, const Tensor& starts, bool causal) {
  const double scale = 1 / std::sqrt(static_cast<double>(q_TNH.size(2)));
  const auto accumulate = accumulate_type(q_TNH.scalar_type());
  const int32_t* bounds = starts.const_data_ptr<int32_t>();
  std::vector<Tensor> results;
  for (int64_t s = 0; s + 1 < starts.size(0); ++s) {
    const auto rows = [&](const Tensor& x) {
      return x.slice(0, bounds[s], bounds[s + 1]).transpose(0, 1);
    };  // [N, S, H]
    Tensor score = at::matmul(rows(q_TNH), rows(k_TNH).transpose(1, 2)).to(accumulate) * scale;
    if (causal) {
      const Tensor hidden = at::ones({score.size(1), score.size(2)}, score.options().dtype(at::kBool)).triu(1);
      score = score.masked_fill(hidden, -std::numeric_limits<double>::infinity());
    }
    results.push_back(at::matmul(score.softmax(-1).to(q_TNH.scalar_type()), rows(v_TNH)).transpose(0, 1));
  }
  return at::cat(results, 0);
}

Tensor cuda_attention(const Tensor& qkv_TX, int64_t heads, int64_t kv_heads, const Segments& segments, bool causal) {
  const int64_t rows = qkv_TX.size(0), width = qkv_TX.size(1) / (heads + 2 * kv_heads);
  const Tensor x = qkv_TX.view({rows, heads + 2 * kv_heads, width});
  const auto parts = x.split_with_sizes({heads, kv_heads, kv_heads}, 1);
  const Tensor &q = parts[0], &k = parts[1], &v = parts[2];
  const CudaKernel kernel = choose_cuda_kernel(q, causal);
  log_choice_once(kernel);
  const Tensor& starts = segments.device_starts;
  if (kernel == CudaKernel::kFlash) {
    const Tensor out = std::get<0>(at::_flash_attention_forward(
        q, k, v, starts, starts, segments.longest, segments.longest, 0.0, causal, /*return_debug_mask=*/false));
    return out.reshape({rows, heads * width});
  }
  const Tensor k_TNH = k.repeat_interleave(heads / kv_heads, 1), v_TNH = v.repeat_interleave(heads / kv_heads, 1);
  if (kernel == CudaKernel::kPlain)
    return plain_attention(q, k_TNH, v_TNH, segments.starts, causal).reshape({rows, heads * width});
  const auto batch = [](const Tensor& t) { return t.unsqueeze(0); };
  const Tensor out = std::get<0>(at::_efficient_attention_forward(batch(q),
                                                                  batch(k_TNH),
                                                                  batch(v_TNH),
                                                                  std::nullopt,
                                                                  starts,
                                                                  starts,
                                                                  segments.longest,
                                                                  segments.longest,
                                                                  0.0,
                                                                  causal ? 1 : 0,
                                                                  /*compute_log_sumexp=*/true));
  return out.reshape({rows, heads * width});
}

}  // namespace

Segments make_segments(const Tensor& starts, int64_t rows, at::Device device) {
  HANOK_REQUIRE(starts.defined() && starts.is_cpu() && starts.scalar_type() == at::kInt && starts.dim() == 1 &&
                    starts.size(0) >= 1 && starts.is_contiguous(),
                kShape)
      << "segment starts: expected a host tensor of int32 [S + 1]";
  Segments segments{.starts = starts};
  const int32_t* data = starts.const_data_ptr<int32_t>();
  const int64_t count = starts.size(0) - 1;
  HANOK_REQUIRE(data[0] == 0 && data[count] == rows, kShape)
      << "segment starts: got " << data[0] << " to " << data[count] << ", expected 0 to " << rows << " rows";
  for (int64_t s = 0; s < count; ++s) {
    HANOK_REQUIRE(data[s] <= data[s + 1], kShape)
        << "segment starts: got " << data[s] << " before " << data[s + 1] << ", expected rising numbers";
    segments.longest = std::max<int64_t>(segments.longest, data[s + 1] - data[s]);
  }
  segments.device_starts = device.is_cpu() ? starts : starts.to(device);
  return segments;
}

Tensor segment_attention(
    const Tensor& qkv_TX, int64_t num_heads, int64_t num_kv_heads, const Segments& segments, bool causal) {
  const int64_t total = num_heads + 2 * num_kv_heads;
  HANOK_REQUIRE(num_heads > 0 && num_kv_heads > 0 && num_heads % num_kv_heads == 0 && qkv_TX.size(1) % total == 0,
                kShape)
      << "attention: got rows of width " << qkv_TX.size(1) << " for " << num_heads << " query and " << num_kv_heads
      << " key/value heads, expected query heads a multiple of key/value heads and a width that all share";
  if (qkv_TX.is_cpu()) return CpuAttention::apply(qkv_TX, segments.starts, num_heads, num_kv_heads, causal);
  return cuda_attention(qkv_TX, num_heads, num_kv_heads, segments, causal);
}

}  // namespace hanok
