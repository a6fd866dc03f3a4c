#include "model/kernels/choose_experts.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/cuda/call.h"
#include "model/kernels/choose_experts_cuda.h"
#include "model/kernels/dispatch.h"

namespace hanok {
namespace {

struct Held : torch::CustomClassHolder {
  explicit Held(ShareGradient gradient) : gradient(std::move(gradient)) {}
  ShareGradient gradient;
};

template <class T>
void choose_on_cpu(const Tensor& logits, ExpertChoice& out, bool normalise) {
  using A = Accumulate<T>;
  const int64_t experts = logits.size(1), choices = out.index_TK.size(1);
  const T* from = logits.const_data_ptr<T>();
  T* weight = out.weight_TK.mutable_data_ptr<T>();
  int64_t* index = out.index_TK.mutable_data_ptr<int64_t>();
  A* share = out.share_TE.mutable_data_ptr<A>();
  at::parallel_for(0, logits.size(0), row_grain(experts * 4), [&](int64_t begin, int64_t end) {
    std::vector<int64_t> order(experts);
    for (int64_t t = begin; t < end; ++t) {
      const T* logit = from + t * experts;
      A *shares = share + t * experts, most = -std::numeric_limits<A>::infinity(), sum = 0, total = 0;
      for (int64_t e = 0; e < experts; ++e) most = std::max(most, static_cast<A>(logit[e]));
      for (int64_t e = 0; e < experts; ++e) sum += shares[e] = std::exp(static_cast<A>(logit[e]) - most);
      for (int64_t e = 0; e < experts; ++e) {
        shares[e] /= sum;
        order[e] = e;
      }
      // What is no number has no order.
      if (!std::isnan(sum))
        std::partial_sort(order.begin(), order.begin() + choices, order.end(), [&](int64_t a, int64_t b) {
          return shares[a] > shares[b] || (shares[a] == shares[b] && a < b);
        });
      for (int64_t k = 0; k < choices; ++k) total += shares[index[t * choices + k] = order[k]];
      for (int64_t k = 0; k < choices; ++k)
        weight[t * choices + k] = static_cast<T>(normalise ? shares[order[k]] / total : shares[order[k]]);
    }
  });
}

void count_on_cpu(const Tensor& index_TK, const RoutedTokens& tokens) {
  const int64_t choices = index_TK.size(1), experts = tokens.assigned_RE.size(1);
  const int64_t *index = index_TK.const_data_ptr<int64_t>(), *row = tokens.row_T.const_data_ptr<int64_t>();
  int64_t* assigned = tokens.assigned_RE.mutable_data_ptr<int64_t>();
  for (int64_t t = 0; t < index_TK.size(0); ++t)
    for (int64_t k = 0; k < choices && row[t] >= 0; ++k) ++assigned[row[t] * experts + index[t * choices + k]];
}

template <class T>
void backward_on_cpu(
    const ChooseExpertsBackward& a, const Accumulate<T>* share, const Accumulate<T>* added, const T* dweight, T* out) {
  using A = Accumulate<T>;
  at::parallel_for(0, a.tokens, row_grain(a.experts * 4), [&](int64_t begin, int64_t end) {
    std::vector<A> ds(a.experts);
    for (int64_t t = begin; t < end; ++t) {
      const A* s = share + t * a.experts;
      const int64_t* chosen = a.index + t * a.choices;
      const T* d = dweight + t * a.choices;
      A total = 0, weighted = 0, inner = 0;
      for (int64_t k = 0; k < a.choices; ++k) {
        total += s[chosen[k]];
        weighted += s[chosen[k]] * static_cast<A>(d[k]);
      }
      const A mean = a.normalise ? weighted / total : A(0), scale = a.normalise ? A(1) / total : A(1);
      for (int64_t e = 0; e < a.experts; ++e) ds[e] = added && a.row[t] >= 0 ? added[a.row[t] * a.experts + e] : A(0);
      for (int64_t k = 0; k < a.choices; ++k) ds[chosen[k]] += (static_cast<A>(d[k]) - mean) * scale;
      for (int64_t e = 0; e < a.experts; ++e) inner += s[e] * ds[e];
      for (int64_t e = 0; e < a.experts; ++e) out[t * a.experts + e] = static_cast<T>(s[e] * (ds[e] - inner));
    }
  });
}

struct Choose : torch::autograd::Function<Choose> {
  static torch::autograd::tensor_list forward(torch::autograd::AutogradContext* ctx,
                                              const Tensor& logits_in,
                                              int64_t choices,
                                              bool normalise,
                                              const RoutedTokens& tokens) {
    const Tensor logits = logits_in.contiguous();
    const auto options = logits.options().requires_grad(false);
    const int64_t rows = logits.size(0);
    ExpertChoice out{
        .weight_TK = at::empty({rows, choices}, options),
        .index_TK = at::empty({rows, choices}, options.dtype(at::kLong)),
        .share_TE = at::empty({rows, logits.size(1)}, options.dtype(accumulate_type(logits.scalar_type())))};
    if (logits.is_cpu()) {
      dispatch_float(logits.scalar_type(), "choose_experts", [&](auto tag) {
        choose_on_cpu<decltype(tag)>(logits, out, normalise);
      });
      if (tokens.assigned_RE.defined()) count_on_cpu(out.index_TK, tokens);
    } else {
      launch(ChooseExperts{
          .call = cuda_call(logits, "choose_experts"),
          .logits = data_of(logits),
          .row = tokens.row_T.const_data_ptr<int64_t>(),
          .weight = mutable_data_of(out.weight_TK),
          .index = out.index_TK.mutable_data_ptr<int64_t>(),
          .share = mutable_data_of(out.share_TE),
          .assigned = tokens.assigned_RE.defined() ? tokens.assigned_RE.mutable_data_ptr<int64_t>() : nullptr,
          .tokens = rows,
          .experts = logits.size(1),
          .choices = choices,
          .normalise = normalise});
    }
    ctx->save_for_backward({out.share_TE, out.index_TK, tokens.row_T});
    ctx->saved_data["normalise"] = normalise;
    ctx->saved_data["held"] = c10::IValue::make_capsule(c10::make_intrusive<Held>(tokens.gradient));
    ctx->mark_non_differentiable({out.index_TK, out.share_TE});
    return {out.weight_TK, out.index_TK, out.share_TE};
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &share = saved[0], &index = saved[1], &row = saved[2];
    const Tensor dweight = grads[0].contiguous();
    const ShareGradient& gradient = static_cast<Held&>(*ctx->saved_data["held"].toCapsule()).gradient;
    Tensor added = gradient ? gradient() : Tensor();
    if (added.defined()) added = added.to(share.scalar_type()).contiguous();
    Tensor dlogits = at::empty(share.sizes(), dweight.options());
    ChooseExpertsBackward args{.share = data_of(share),
                               .index = index.const_data_ptr<int64_t>(),
                               .row = row.const_data_ptr<int64_t>(),
                               .dweight = data_of(dweight),
                               .added = data_of(added),
                               .dlogits = mutable_data_of(dlogits),
                               .tokens = share.size(0),
                               .experts = share.size(1),
                               .choices = index.size(1),
                               .normalise = ctx->saved_data["normalise"].toBool()};
    if (dweight.is_cpu()) {
      dispatch_float(dweight.scalar_type(), "choose_experts", [&](auto tag) {
        using T = decltype(tag);
        using A = Accumulate<T>;
        backward_on_cpu<T>(args,
                           share.const_data_ptr<A>(),
                           added.defined() ? added.const_data_ptr<A>() : nullptr,
                           dweight.const_data_ptr<T>(),
                           dlogits.mutable_data_ptr<T>());
      });
    } else {
      args.call = cuda_call(dweight, "choose_experts");
      launch(args);
    }
    return {dlogits, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

ExpertChoice choose_experts(const Tensor& logits_TE, int64_t choices, bool normalise, const RoutedTokens& tokens) {
  const auto fits = [&] {
    const Tensor &row = tokens.row_T, &assigned = tokens.assigned_RE;
    return logits_TE.dim() == 2 && choices >= 1 && choices <= logits_TE.size(1) && row.is_contiguous() &&
           row.sizes() == at::IntArrayRef{logits_TE.size(0)} &&
           (!assigned.defined() || (assigned.dim() == 2 && assigned.is_contiguous() &&
                                    assigned.size(1) == logits_TE.size(1) && assigned.scalar_type() == at::kLong));
  };
  HANOK_REQUIRE(fits(), kShape) << "choose_experts: got logits " << logits_TE.sizes() << " for " << choices
                                << " choices with rows " << tokens.row_T.sizes()
                                << ", expected [T, E] of at least as many experts, and [T]";
  const auto out = Choose::apply(logits_TE, choices, normalise, tokens);
  return {out[0], out[1], out[2]};
}

}  // namespace hanok
