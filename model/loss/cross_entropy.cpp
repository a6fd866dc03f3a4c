#include "model/loss/cross_entropy.h"

#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"
#include "base/upload.h"
#include "model/kernels/vocab_softmax.h"
#include "parallel/grad_buffer.h"
#include "parallel/redistribute.h"

namespace hanok {
namespace {

/// log sum exp over the whole vocabulary, and the target's logit.
struct Reduced {
  Tensor log_sum_N, target_N;
};

Reduced reduce_over_shards(const VocabStats& stats, Comm& tp) {
  Tensor largest = stats.max_N.clone();
  tp.all_reduce(largest, Reduce::kMax);
  Tensor sums = at::stack({stats.sum_N * (stats.max_N - largest).exp(), stats.target_N});
  tp.all_reduce(sums, Reduce::kSum);
  return {largest + sums[0].log(), sums[1]};
}

struct LinearCrossEntropy : torch::autograd::Function<LinearCrossEntropy> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& y_ND,
                        const Tensor& weight_VD,
                        const Tensor& local_target_N,
                        const std::shared_ptr<Comm>& tp) {
    const Reduced reduced = reduce_over_shards(vocab_stats(y_ND, weight_VD, local_target_N), *tp);
    ctx->save_for_backward({y_ND, weight_VD, local_target_N, reduced.log_sum_N});
    return reduced.log_sum_N - reduced.target_N;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    // A table of gradients that autograd would add to is added to here: on a large vocabulary, making another one and
    // adding it up costs a small model more than its layers.
    const Tensor& weight = saved[1];
    const bool wanted = ctx->needs_input_grad(1);
    const GradTarget target = wanted ? grad_target(weight) : GradTarget{};
    VocabGrads result =
        vocab_grads(saved[0], weight, saved[2], saved[3], grads[0], wanted, target.buffer, target.is_empty);
    return {result.dy_ND, result.dweight_VD, Tensor(), Tensor()};
  }
};

void require_tokens(const Tensor& ids, int64_t vocab) {
  if (ids.numel() == 0) return;
  const auto [least, largest] = ids.aminmax();
  const int64_t first = least.item<int64_t>(), last = largest.item<int64_t>();
  HANOK_REQUIRE(first >= 0 && last < vocab, kShape)
      << "target: got a token id outside the vocabulary, " << (first < 0 ? first : last) << ", expected 0 to "
      << vocab - 1 << ", or -100 for no label; loss; check that the tokenizer belongs to the model";
}

void require_weight(const Tensor& y, const Tensor& weight) {
  HANOK_REQUIRE(weight.dim() == 2 && y.dim() == 2 && weight.size(1) == y.size(1), kShape)
      << "output head: got hidden states " << y.sizes() << " and weight " << weight.sizes()
      << ", expected the same width";
}

}  // namespace

Tensor linear_cross_entropy(const Tensor& y_TD, const VocabShard& head, const Tensor& targets_T, const Groups& groups) {
  require_weight(y_TD, head.weight_VD);
  const Tensor y = redistribute(y_TD, Layout::kSequence, Layout::kFull, groups);
  HANOK_REQUIRE(targets_T.dim() == 1 && targets_T.size(0) == y.size(0), kShape)
      << "targets: got " << targets_T.sizes() << ", expected [" << y.size(0) << "], one per row";
  const Tensor rows = targets_T.ne(-100).nonzero().squeeze(1);
  const Tensor target = targets_T.index_select(0, rows);
  // Targets on the host are looked through there, so that no device waits to learn how many labels there are.
  require_tokens(target, head.total);
  const auto moved = [&](const Tensor& x) { return upload(x, y.device()); };
  return LinearCrossEntropy::apply(
      y.index_select(0, moved(rows)), head.weight_VD, moved(target - head.begin), groups.tp);
}

Tensor candidate_logprobs(
    const Tensor& y_TD, const VocabShard& head, const Tensor& rows, const Tensor& candidates_C, const Groups& groups) {
  at::NoGradGuard no_grad;
  const Tensor& weight_VD = head.weight_VD;
  require_weight(y_TD, weight_VD);
  require_tokens(candidates_C, head.total);
  const Tensor y = redistribute(y_TD, Layout::kSequence, Layout::kFull, groups).index_select(0, rows);
  const Tensor none = at::full({y.size(0)}, -1, candidates_C.options());
  const Reduced reduced = reduce_over_shards(vocab_stats(y, weight_VD, none), *groups.tp);
  const Tensor local = candidates_C - head.begin;
  const Tensor held = local.ge(0).logical_and(local.lt(weight_VD.size(0)));
  const Tensor found = held.nonzero().squeeze(1);
  Tensor logits = at::zeros({y.size(0), candidates_C.size(0)}, reduced.log_sum_N.options());
  const Tensor weight = weight_VD.index_select(0, local.index_select(0, found));
  logits.index_copy_(1, found, at::mm(y, weight.t()).to(logits.scalar_type()));
  groups.tp->all_reduce(logits, Reduce::kSum);
  return logits - reduced.log_sum_N.unsqueeze(1);
}

}  // namespace hanok
