#include "model/loss/cross_entropy.h"

#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"
#include "model/kernels/vocab_softmax.h"
#include "parallel/redistribute.h"

namespace hanok {
namespace {

/// log sum exp over the whole vocabulary, the target's logit, and how many ranks held the target (1, unless it is no
/// token).
struct Reduced {
  Tensor log_sum_N, target_N, owners_N;
};

Reduced reduce_over_shards(VocabStats stats, const Tensor& local_target_N, int64_t local_vocab, Comm& tp) {
  Tensor largest = stats.max_N.clone();
  tp.all_reduce(largest, Reduce::kMax);
  const Tensor held = local_target_N.ge(0).logical_and(local_target_N.lt(local_vocab)).to(stats.sum_N.scalar_type());
  Tensor sums = at::stack({stats.sum_N * (stats.max_N - largest).exp(), stats.target_N, held});
  tp.all_reduce(sums, Reduce::kSum);
  return {largest + sums[0].log(), sums[1], sums[2]};
}

struct LinearCrossEntropy : torch::autograd::Function<LinearCrossEntropy> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& y_ND,
                        const Tensor& weight_VD,
                        const Tensor& local_target_N,
                        const std::shared_ptr<Comm>& tp) {
    const Reduced reduced =
        reduce_over_shards(vocab_stats(y_ND, weight_VD, local_target_N), local_target_N, weight_VD.size(0), *tp);
    HANOK_REQUIRE(reduced.owners_N.eq(1).all().item<bool>(), kShape)
        << "target: got a token id outside the vocabulary, expected 0 to V - 1, or -100 for no label; loss; "
        << "check that the tokenizer belongs to the model";
    ctx->save_for_backward({y_ND, weight_VD, local_target_N, reduced.log_sum_N});
    return reduced.log_sum_N - reduced.target_N;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    VocabGrads result = vocab_grads(saved[0], saved[1], saved[2], saved[3], grads[0], ctx->needs_input_grad(1));
    return {result.dy_ND, result.dweight_VD, Tensor(), Tensor()};
  }
};

void require_weight(const Tensor& y, const Tensor& weight) {
  HANOK_REQUIRE(weight.dim() == 2 && y.dim() == 2 && weight.size(1) == y.size(1), kShape)
      << "output head: got hidden states " << y.sizes() << " and weight " << weight.sizes()
      << ", expected the same width";
}

}  // namespace

Tensor linear_cross_entropy(
    const Tensor& y_TD, const Tensor& weight_VD, int64_t vocab_begin, const Tensor& targets_T, const Groups& groups) {
  require_weight(y_TD, weight_VD);
  const Tensor y = redistribute(y_TD, Layout::kSequence, Layout::kFull, groups);
  HANOK_REQUIRE(targets_T.dim() == 1 && targets_T.size(0) == y.size(0), kShape)
      << "targets: got " << targets_T.sizes() << ", expected [" << y.size(0) << "], one per row";
  const Tensor rows = targets_T.ne(-100).nonzero().squeeze(1);
  const Tensor local_target = targets_T.index_select(0, rows) - vocab_begin;
  // Targets on the host are looked through there, so that no device waits to learn how many labels there are.
  const auto moved = [&](const Tensor& x) { return x.to(y.device(), /*non_blocking=*/true); };
  return LinearCrossEntropy::apply(y.index_select(0, moved(rows)), weight_VD, moved(local_target), groups.tp);
}

Tensor candidate_logprobs(const Tensor& y_TD,
                          const Tensor& weight_VD,
                          int64_t vocab_begin,
                          const Tensor& rows,
                          const Tensor& candidates_C,
                          const Groups& groups) {
  at::NoGradGuard no_grad;
  require_weight(y_TD, weight_VD);
  const Tensor y = redistribute(y_TD, Layout::kSequence, Layout::kFull, groups).index_select(0, rows);
  const Tensor none = at::full({y.size(0)}, -1, candidates_C.options());
  const Reduced reduced = reduce_over_shards(vocab_stats(y, weight_VD, none), none, weight_VD.size(0), *groups.tp);
  const Tensor local = candidates_C - vocab_begin;
  const Tensor held = local.ge(0).logical_and(local.lt(weight_VD.size(0)));
  const Tensor found = held.nonzero().squeeze(1);
  Tensor logits = at::zeros({y.size(0), candidates_C.size(0)}, reduced.log_sum_N.options());
  const Tensor weight = weight_VD.index_select(0, local.index_select(0, found));
  logits.index_copy_(1, found, at::mm(y, weight.t()).to(logits.scalar_type()));
  groups.tp->all_reduce(logits, Reduce::kSum);
  Tensor owners = held.to(logits.scalar_type());
  groups.tp->all_reduce(owners, Reduce::kSum);
  HANOK_REQUIRE(owners.eq(1).all().item<bool>(), kShape)
      << "candidate: got a token id outside the vocabulary, expected 0 to V - 1; evaluation; check the candidates";
  return logits - reduced.log_sum_N.unsqueeze(1);
}

}  // namespace hanok
