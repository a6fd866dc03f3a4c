#include "model/loss/cross_entropy.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/upload.h"
#include "model/kernels/add_product.h"
#include "model/kernels/dispatch.h"
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

/// Labelled rows against one shard of the vocabulary.
struct Labelled {
  Tensor y_ND, weight_VD, target_N;  // targets counted from the shard's first row
  int64_t vocab = 0;                 // of all shards
};

/// f(first, count, z, statistics over all shards) for every chunk of rows; z is the caller's to overwrite.
template <class F>
void for_each_chunk(const Labelled& rows, bool weight_trains, Comm& tp, const F& f) {
  const int64_t all = rows.y_ND.size(0);
  const int64_t most =
      rows_of_logits(rows.vocab, tp.size(), rows.weight_VD.size(1), weight_trains, !rows.y_ND.is_cpu());
  for (int64_t first = 0; first < all; first += most) {
    const int64_t count = std::min(most, all - first);
    Tensor z = vocab_logits(rows.y_ND.narrow(0, first, count), rows.weight_VD);
    const VocabStats stats = vocab_stats(z, rows.target_N.narrow(0, first, count));
    f(first, count, z, reduce_over_shards(stats, tp));
  }
}

Reduced reduced_rows(const Labelled& rows, Comm& tp) {
  const Tensor none = at::empty({0}, rows.y_ND.options().dtype(accumulate_type(rows.y_ND.scalar_type())));
  std::vector<Tensor> log_sums = {none}, targets = {none};
  for_each_chunk(rows, false, tp, [&](int64_t, int64_t, const Tensor&, const Reduced& reduced) {
    log_sums.push_back(reduced.log_sum_N);
    targets.push_back(reduced.target_N);
  });
  return {at::cat(log_sums), at::cat(targets)};
}

/// Of the head's weight, while chunks are added to it.
class WeightGradient {
 public:
  /// Added where autograd would add it to: on a large vocabulary, making a table and adding it up costs a small model
  /// more than its layers.
  explicit WeightGradient(const Tensor& weight) : target_(grad_target(weight)), weight_(weight) {
    if (target_.buffer.defined()) return;
    target_.is_empty = true;
    target_.buffer = at::empty(weight.sizes(), weight.options().dtype(accumulate_type(weight.scalar_type())));
    is_own_ = true;
  }
  void add(const Tensor& dz, const Tensor& y) {
    if (std::exchange(target_.is_empty, false))
      set_product(target_.buffer, dz.t(), y);
    else
      add_product(target_.buffer, dz.t(), y);
  }
  /// What is left for autograd to add: undefined where everything lies in the buffer.
  Tensor finish() {
    if (target_.is_empty) target_.buffer.zero_();
    return is_own_ ? target_.buffer.to(weight_.scalar_type()) : Tensor();
  }

 private:
  GradTarget target_;
  Tensor weight_;
  bool is_own_ = false;
};

struct LinearCrossEntropy : torch::autograd::Function<LinearCrossEntropy> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& y_ND,
                        const Tensor& weight_VD,
                        const Tensor& local_target_N,
                        const Tensor& weight_N,
                        int64_t vocab,
                        bool with_gradients,
                        const std::shared_ptr<Comm>& tp) {
    const bool y_trains = with_gradients && y_ND.requires_grad(),
               weight_trains = with_gradients && weight_VD.requires_grad();
    const Labelled rows{y_ND.detach(), weight_VD.detach(), local_target_N, vocab};
    const auto wide = accumulate_type(y_ND.scalar_type());
    const Tensor g_N = weight_N.to(wide);
    Tensor loss_N = at::empty({y_ND.size(0)}, y_ND.options().dtype(wide));
    Tensor dy = y_trains ? at::empty_like(rows.y_ND) : Tensor();
    std::optional<WeightGradient> dweight;
    if (weight_trains) dweight.emplace(weight_VD);
    for_each_chunk(rows, weight_trains, *tp, [&](int64_t first, int64_t count, Tensor& z, const Reduced& reduced) {
      const Tensor g = g_N.narrow(0, first, count);
      loss_N.narrow(0, first, count).copy_((reduced.log_sum_N - reduced.target_N) * g);
      if (!y_trains && !weight_trains) return;
      turn_into_vocab_gradient(z, local_target_N.narrow(0, first, count), reduced.log_sum_N, g);
      const Tensor dz = z.to(y_ND.scalar_type());
      if (y_trains) {
        Tensor here = dy.narrow(0, first, count);
        at::mm_out(here, dz, rows.weight_VD);
      }
      if (weight_trains) dweight->add(dz, rows.y_ND.narrow(0, first, count));
    });
    const Tensor rest = dweight ? dweight->finish() : Tensor();
    ctx->save_for_backward({dy, rest});
    ctx->saved_data["is_added"] = weight_trains && !rest.defined();
    return loss_N.sum();
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor& g = grads[0];
    HANOK_REQUIRE(!g.is_cpu() || !ctx->saved_data["is_added"].toBool() || g.item<double>() == 1, kShape)
        << "loss: got a gradient of " << g.item<double>() << ", expected 1, because the gradient of the head was added "
        << "in the forward; linear_cross_entropy; scale the weights of its tokens";
    const auto scaled = [&](const Tensor& x) { return x.defined() ? (x * g).to(x.scalar_type()) : Tensor(); };
    return {scaled(saved[0]), scaled(saved[1]), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
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

/// errors: kShape
Labelled labelled_rows(const Tensor& y_TD, const VocabShard& head, const Tensor& targets_T, const Groups& groups) {
  require_weight(y_TD, head.weight_VD);
  const Tensor y = redistribute(y_TD, Layout::kSequence, Layout::kFull, groups);
  HANOK_REQUIRE(targets_T.dim() == 1 && targets_T.size(0) == y.size(0), kShape)
      << "targets: got " << targets_T.sizes() << ", expected [" << y.size(0) << "], one per row";
  const Tensor rows = targets_T.ne(-100).nonzero().squeeze(1);
  const Tensor target = targets_T.index_select(0, rows);
  // Targets on the host are looked through there, so that no device waits to learn how many labels there are.
  require_tokens(target, head.total);
  const auto moved = [&](const Tensor& x) { return upload(x, y.device()); };
  return {.y_ND = y.index_select(0, moved(rows)),
          .weight_VD = head.weight_VD,
          .target_N = moved(target - head.begin),
          .vocab = head.total};
}

}  // namespace

Tensor linear_cross_entropy(
    const Tensor& y_TD, const VocabShard& head, const Tensor& targets_T, const Tensor& weight_N, const Groups& groups) {
  const Labelled rows = labelled_rows(y_TD, head, targets_T, groups);
  HANOK_REQUIRE(weight_N.dim() == 1 && weight_N.size(0) == rows.y_ND.size(0), kShape)
      << "weights of labels: got " << weight_N.sizes() << ", expected [" << rows.y_ND.size(0) << "], one per label";
  return LinearCrossEntropy::apply(
      rows.y_ND, rows.weight_VD, rows.target_N, weight_N, rows.vocab, at::GradMode::is_enabled(), groups.tp);
}

Tensor label_losses(const Tensor& y_TD, const VocabShard& head, const Tensor& targets_T, const Groups& groups) {
  at::NoGradGuard no_grad;
  const Labelled rows = labelled_rows(y_TD, head, targets_T, groups);
  const Reduced reduced = reduced_rows(rows, *groups.tp);
  return reduced.log_sum_N - reduced.target_N;
}

Tensor candidate_logprobs(
    const Tensor& y_TD, const VocabShard& head, const Tensor& rows, const Tensor& candidates_C, const Groups& groups) {
  at::NoGradGuard no_grad;
  const Tensor& weight_VD = head.weight_VD;
  require_weight(y_TD, weight_VD);
  require_tokens(candidates_C, head.total);
  const Labelled asked{.y_ND = redistribute(y_TD, Layout::kSequence, Layout::kFull, groups).index_select(0, rows),
                       .weight_VD = weight_VD,
                       .target_N = at::full(rows.sizes(), -1, candidates_C.options()),
                       .vocab = head.total};
  const Tensor log_sum_N = reduced_rows(asked, *groups.tp).log_sum_N;
  const Tensor local = candidates_C - head.begin;
  const Tensor held = local.ge(0).logical_and(local.lt(weight_VD.size(0)));
  const Tensor found = held.nonzero().squeeze(1);
  Tensor logits = at::zeros({rows.size(0), candidates_C.size(0)}, log_sum_N.options());
  const Tensor weight = weight_VD.index_select(0, local.index_select(0, found));
  logits.index_copy_(1, found, at::mm(asked.y_ND, weight.t()).to(logits.scalar_type()));
  groups.tp->all_reduce(logits, Reduce::kSum);
  return logits - log_sum_N.unsqueeze(1);
}

}  // namespace hanok
