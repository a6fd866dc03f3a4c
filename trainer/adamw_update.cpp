#include "trainer/adamw_update.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

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

// no-math-errno: without it sqrt may call a function, and the loop is not vectorised.
template <class Grad>
__attribute__((optimize("no-math-errno"))) void update(
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
                const std::vector<Factors>& factors) {
  float *p = state.values.data_ptr<float>(), *m = state.m.data_ptr<float>(), *v = state.v.data_ptr<float>();
  constexpr int64_t kGrain = 1 << 15;
  at::parallel_for(0, state.values.numel(), kGrain, [&](int64_t begin, int64_t end) {
    auto run =
        std::partition_point(runs.begin(), runs.end(), [&](const RateRun& r) { return r.begin + r.size <= begin; });
    for (; run != runs.end() && run->begin < end; ++run) {
      const int64_t first = std::max(begin, run->begin), last = std::min(end, run->begin + run->size);
      update(p + first, m + first, v + first, grad + first, last - first, factors[run - runs.begin()]);
    }
  });
}

}  // namespace

void adamw_fused(AdamWState& state,
                 const Tensor& grad,
                 const Tensor& grad_scale,
                 const Tensor& apply,
                 const Tensor& steps,
                 const std::vector<RateRun>& runs,
                 const AdamWNumbers& numbers) {
  if (!apply.item<bool>()) return;
  std::vector<Factors> factors;
  for (const RateRun& run : runs)
    factors.push_back(factors_of(run, numbers, grad_scale.item<float>(), steps.item<double>()));
  if (grad.scalar_type() == at::kBFloat16) {
    update_all(state, grad.data_ptr<at::BFloat16>(), runs, factors);
  } else {
    update_all(state, grad.data_ptr<float>(), runs, factors);
  }
}

void adamw_composed(AdamWState& state,
                    const Tensor& grad,
                    const Tensor& grad_scale,
                    const Tensor& apply,
                    const Tensor& steps,
                    const std::vector<RateRun>& runs,
                    const AdamWNumbers& n) {
  const Tensor exponent = steps.clamp_min(1).to(at::kDouble);  // before the first applied step nothing is used of it
  const Tensor on = apply.to(at::kDouble);
  const Tensor weight1 = on * (1 - n.beta1), weight2 = on * (1 - n.beta2), beta2 = 1 - weight2;
  const Tensor correction1 = 1 - at::pow(n.beta1, exponent), root_correction2 = (1 - at::pow(n.beta2, exponent)).sqrt();
  constexpr int64_t kChunk = 1 << 25;  // bounds the temporaries
  for (const RateRun& run : runs) {
    for (int64_t begin = run.begin; begin < run.begin + run.size; begin += kChunk) {
      const int64_t size = std::min(kChunk, run.begin + run.size - begin);
      const auto piece = [&](const Tensor& t) { return t.narrow(0, begin, size); };
      const double lr = n.lr * run.lr_scale;
      // A skipped gradient is not finite, and 0 * inf is not 0: it is replaced before it meets anything.
      const Tensor g = at::where(apply, piece(grad).to(at::kFloat) * grad_scale.to(at::kFloat), 0.0);
      Tensor p = piece(state.values), m = piece(state.m), v = piece(state.v);
      m.add_((g - m).mul_(weight1));
      v.mul_(beta2).add_((g * weight2).mul_(g));
      p.mul_(1 - on * (lr * run.weight_decay));
      p.sub_((m * (on * lr / correction1)).div_(v.sqrt().div_(root_correction2).add_(n.eps)));
    }
  }
}

}  // namespace hanok
