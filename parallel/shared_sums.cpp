#include "parallel/shared_sums.h"

#include "base/error.h"
#include "parallel/grad_layout.h"

namespace hanok {

SharedSums::SharedSums(const ParamTable& params, const Groups& groups, const std::vector<Tensor>& grads)
    : tp_(groups.tp), pp_(groups.pp) {
  const int parts = groups.tp->size();
  for (size_t i = 0; i < params.size(); ++i) {
    const ParamSpec& spec = params[i].spec;
    if (!params[i].trainable) continue;
    if (spec.twin >= 0) twins_.push_back({.grad = grads[i], .stage = spec.twin});
    if (!is_shared_over_tp(spec, groups)) continue;
    if (spec.cut_dim < 0) {
      tp_sums_.push_back({.grad = grads[i]});
      continue;
    }
    for (const LocalRange& range : local_ranges(spec, groups)) {
      if (range.replicas == 1) continue;
      HANOK_REQUIRE(!is_of_experts(spec), kShape) << spec.name << ": got fewer experts than ep = " << groups.ep->size()
                                                  << ", expected a multiple; gradient sums; choose a smaller ep";
      tp_sums_.push_back({.grad = grads[i].narrow(spec.cut_dim, range.local_begin, range.size),
                          .slot = groups.tp->rank() / range.replicas,
                          .slots = parts / range.replicas});
    }
  }
}

void SharedSums::sum() {
  sum_over_tp();
  sum_over_twins();
}

void SharedSums::sum_over_tp() {
  for (size_t first = 0; first < tp_sums_.size();) {
    size_t last = first;
    int64_t elements = 0;
    while (last < tp_sums_.size() && (last == first || elements + tp_sums_[last].elements() <= kSumElements)) {
      elements += tp_sums_[last++].elements();
    }
    Tensor bucket = at::zeros({elements}, tp_sums_[first].grad.options());
    std::vector<Tensor> own;
    int64_t begin = 0;
    for (size_t i = first; i < last; ++i) {
      const TpSum& sum = tp_sums_[i];
      const int64_t size = sum.grad.numel();
      own.push_back(bucket.narrow(0, begin + sum.slot * size, size).view(sum.grad.sizes()));
      own.back().copy_(sum.grad);
      begin += sum.elements();
    }
    tp_->all_reduce(bucket, Reduce::kSum);
    for (size_t i = first; i < last; ++i) tp_sums_[i].grad.copy_(own[i - first]);
    first = last;
  }
}

/// Both stages add the same two numbers: their copies of the weight stay equal bit by bit.
void SharedSums::sum_over_twins() {
  for (const Twin& twin : twins_) {
    const Tensor flat = twin.grad.view(-1);
    for (int64_t begin = 0; begin < flat.numel(); begin += kSumElements) {
      const Tensor own = flat.narrow(0, begin, std::min(kSumElements, flat.numel() - begin));
      Tensor theirs = at::empty_like(own);
      pp_->offer(own.clone(), twin.stage);
      pp_->take(theirs, twin.stage);
      own.add_(theirs);
    }
  }
}

}  // namespace hanok
