#include "trainer/adamw_update.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "base/cuda/call.h"
#include "trainer/adamw_update_cuda.h"

namespace hanok {
namespace {

/// What one element needs, rounded to f32 once as torch does.
struct Factors {
  float grad_scale, keep, weight1, beta2, weight2, step_size, root_correction2, eps;
};

Factors factors_of(const RateRun& run, const AdamWNumbers& n, float grad_scale, double steps) {
  const double lr = n.lr * run.lr_scale;
  return {.grad_scale = grad_scale,
          .keep = static_cast<float>(1 - lr * run.weight_decay),
          .weight1 = static_cast<float>(1 - n.beta1),
          .beta2 = static_cast<float>(n.beta2),
          .weight2 = static_cast<float>(1 - n.beta2),
          .step_size = static_cast<float>(lr / (1 - std::pow(n.beta1, steps))),
          .root_correction2 = static_cast<float>(std::sqrt(1 - std::pow(n.beta2, steps))),
          .eps = static_cast<float>(n.eps)};
}

// Vectorised because this file is compiled without math errno, for which sqrt would have to call a function.
template <class Grad>
void update(
    float* __restrict p, float* __restrict m, float* __restrict v, const Grad* __restrict grad, int64_t n, Factors f) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float g = static_cast<float>(grad[i]) * f.grad_scale;
    const float m_new = m[i] + f.weight1 * (g - m[i]);
    const float v_new = v[i] * f.beta2 + f.weight2 * g * g;
    m[i] = m_new;
    v[i] = v_new;
    p[i] = p[i] * f.keep - f.step_size * m_new / (std::sqrt(v_new) / f.root_correction2 + f.eps);
  }
}

template <class Grad>
void update_all(AdamWState& state,
                const Grad* grad,
                const std::vector<RateRun>& runs,
                const std::vector<Factors>& factors,
                int64_t first_of_all,
                int64_t count) {
  float *p = state.values.data_ptr<float>(), *m = state.m.data_ptr<float>(), *v = state.v.data_ptr<float>();
  constexpr int64_t kGrain = 1 << 15;
  at::parallel_for(first_of_all, first_of_all + count, kGrain, [&](int64_t begin, int64_t end) {
    auto run =
        std::partition_point(runs.begin(), runs.end(), [&](const RateRun& r) { return r.begin + r.size <= begin; });
    for (; run != runs.end() && run->begin < end; ++run) {
      const int64_t first = std::max(begin, run->begin), last = std::min(end, run->begin + run->size);
      update(p + first, m + first, v + first, grad + first, last - first, factors[run - runs.begin()]);
    }
  });
}

void update_on_cpu(AdamWState& state,
                   const Tensor& grad,
                   const Tensor& grad_scale,
                   const Tensor& steps,
                   const std::vector<RateRun>& runs,
                   const AdamWNumbers& numbers,
                   const std::vector<WeightBlock>& weights) {
  std::vector<Factors> factors;
  for (const RateRun& run : runs)
    factors.push_back(factors_of(run, numbers, grad_scale.item<float>(), steps.item<double>()));
  const auto update_part = [&](int64_t begin, int64_t count) {
    if (grad.scalar_type() == at::kBFloat16) {
      update_all(state, grad.data_ptr<at::BFloat16>(), runs, factors, begin, count);
    } else if (grad.scalar_type() == at::kDouble) {
      update_all(state, grad.data_ptr<double>(), runs, factors, begin, count);
    } else {
      update_all(state, grad.data_ptr<float>(), runs, factors, begin, count);
    }
  };
  if (weights.empty()) update_part(0, state.values.numel());
  for (const WeightBlock& block : weights) {
    update_part(block.shard_begin, block.weights.numel());
    Tensor(block.weights).copy_(state.values.narrow(0, block.shard_begin, block.weights.numel()));
  }
}

/// The runs' parts within [begin, end), counted from `begin`.
std::vector<AdamWRun> runs_within(const std::vector<RateRun>& runs, int64_t begin, int64_t end, double lr) {
  std::vector<AdamWRun> within;
  for (const RateRun& run : runs) {
    const int64_t first = std::max(begin, run.begin), last = std::min(end, run.begin + run.size);
    const double rate = lr * run.lr_scale;
    if (first < last) within.push_back({first - begin, last - first, rate, rate * run.weight_decay});
  }
  return within;
}

void update_on_cuda(AdamWState& state,
                    const Tensor& grad,
                    const Tensor& grad_scale,
                    const Tensor& apply,
                    const Tensor& steps,
                    const std::vector<RateRun>& runs,
                    const AdamWNumbers& numbers,
                    const WeightBlock& block) {
  const Tensor& rounded = block.weights;
  const int64_t begin = rounded.defined() ? block.shard_begin : 0;
  const int64_t size = rounded.defined() ? rounded.numel() : state.values.numel();
  const std::vector<AdamWRun> local = runs_within(runs, begin, begin + size, numbers.lr);
  const auto at_block = [&](const Tensor& x) { return x.narrow(0, begin, size); };
  const Tensor grad_block = at_block(grad);
  launch(AdamWKernel{.call = cuda_call(grad_block, "adamw"),
                     .rounded_type = rounded.defined() ? cuda_type(rounded.scalar_type(), "adamw") : CudaType::kBf16,
                     .values = at_block(state.values).mutable_data_ptr<float>(),
                     .m = at_block(state.m).mutable_data_ptr<float>(),
                     .v = at_block(state.v).mutable_data_ptr<float>(),
                     .grad = data_of(grad_block),
                     .rounded = mutable_data_of(rounded),
                     .grad_scale = grad_scale.const_data_ptr<float>(),
                     .apply = apply.const_data_ptr<bool>(),
                     .steps = steps.const_data_ptr<int64_t>(),
                     .runs = local.data(),
                     .num_runs = static_cast<int64_t>(local.size()),
                     .beta1 = numbers.beta1,
                     .beta2 = numbers.beta2,
                     .eps = numbers.eps});
}

}  // namespace

void adamw_update(AdamWState& state,
                  const Tensor& grad,
                  const Tensor& grad_scale,
                  const Tensor& apply,
                  const Tensor& steps,
                  const std::vector<RateRun>& runs,
                  const AdamWNumbers& numbers,
                  const std::vector<WeightBlock>& weights) {
  if (state.values.is_cpu()) {
    if (apply.item<bool>()) update_on_cpu(state, grad, grad_scale, steps, runs, numbers, weights);
    return;
  }
  if (weights.empty()) update_on_cuda(state, grad, grad_scale, apply, steps, runs, numbers, {});
  for (const WeightBlock& block : weights) update_on_cuda(state, grad, grad_scale, apply, steps, runs, numbers, block);
}

}  // namespace hanok
