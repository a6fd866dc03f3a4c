#include "model/kernels/attention_aten.h"

#include "model/kernels/dispatch.h"

namespace hanok::attention_aten {
namespace {

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

std::vector<Tensor> q_k_v(const Tensor& qkv_TX, const AttentionSizes& sizes) {
  return qkv_TX.view({qkv_TX.size(0), sizes.heads + 2 * sizes.kv_heads, sizes.width})
      .split_with_sizes({sizes.heads, sizes.kv_heads, sizes.kv_heads}, 1);
}

}  // namespace

AttentionKernel best_kernel(const Tensor& qkv_TX, const AttentionSizes& sizes) {
  return best_kernel_of_queries(qkv_TX.narrow(1, 0, sizes.heads * sizes.width), sizes);
}

AttentionKernel best_kernel_of_queries(const Tensor& q_TX, const AttentionSizes& sizes) {
  const Tensor probe = q_TX.slice(0, 0, 1).view({-1, 1, sizes.heads, sizes.width}).transpose(1, 2);  // [1, N, 1, H]
  switch (at::_fused_sdp_choice(probe, probe, probe, std::nullopt, 0.0, sizes.causal)) {
    case 1:
    case 3: return AttentionKernel::kFlash;  // 3 is cuDNN: on a device that flash runs on as well
    case 2: return AttentionKernel::kEfficient;
    default: return AttentionKernel::kPlain;
  }
}

Tensor attention(const Tensor& qkv_TX, const Segments& segments, const AttentionSizes& sizes, AttentionKernel kernel) {
  const int64_t rows = qkv_TX.size(0);
  auto parts = q_k_v(qkv_TX, sizes);
  // Kernels read 16-byte words: zeros behind every head change no score, and their results are cut off.
  const int64_t padding = kernel == AttentionKernel::kPlain ? 0 : -sizes.width & 7;
  if (padding > 0)
    for (Tensor& part : parts) part = at::constant_pad_nd(part, {0, padding});
  const double scale = 1 / std::sqrt(static_cast<double>(sizes.width));
  const auto joined = [&](const Tensor& out_TNH) {
    return out_TNH.narrow(-1, 0, sizes.width).reshape({rows, sizes.heads * sizes.width});
  };
  const Tensor &q = parts[0], &k = parts[1], &v = parts[2], &starts = segments.device_starts;
  if (kernel == AttentionKernel::kFlash) {
    const Tensor out = std::get<0>(at::_flash_attention_forward(q,
                                                                k,
                                                                v,
                                                                starts,
                                                                starts,
                                                                segments.longest,
                                                                segments.longest,
                                                                0.0,
                                                                sizes.causal,
                                                                /*return_debug_mask=*/false,
                                                                scale));
    return joined(out);
  }
  const Tensor k_TNH = k.repeat_interleave(sizes.group(), 1), v_TNH = v.repeat_interleave(sizes.group(), 1);
  if (kernel == AttentionKernel::kPlain)
    return plain_attention(q, k_TNH, v_TNH, segments.starts, sizes.causal).reshape({rows, sizes.heads * sizes.width});
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
                                                                  sizes.causal ? 1 : 0,
                                                                  /*compute_log_sumexp=*/true,
                                                                  scale));
  return joined(out.squeeze(0));
}

}  // namespace hanok::attention_aten
