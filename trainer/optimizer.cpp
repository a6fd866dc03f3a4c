#include "trainer/optimizer.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "parallel/plan.h"
#include "trainer/configured_dtype.h"

namespace hanok {
namespace {

bool matches_any(const std::vector<std::string>& globs, const std::string& name) {
  return std::any_of(globs.begin(), globs.end(), [&](const std::string& glob) { return glob_match(glob, name); });
}

/// Neighbours with equal rates become one run.
std::vector<RateRun> rate_runs(const OptimizerConfig& config,
                               const ParamTable& params,
                               const GradSync& grads,
                               Reach reach) {
  std::vector<RateRun> runs;
  for (const ShardPiece& piece : grads.pieces()) {
    if (reach_of(params[piece.param].spec.name) != reach) continue;
    const ParamRates rates = rates_of(config, params[piece.param].spec.name);
    RateRun* last = runs.empty() ? nullptr : &runs.back();
    if (last && last->begin + last->size == piece.shard_begin && last->lr_scale == rates.lr_scale &&
        last->weight_decay == rates.weight_decay) {
      last->size += piece.size;
    } else {
      runs.push_back({piece.shard_begin, piece.size, rates.lr_scale, rates.weight_decay});
    }
  }
  return runs;
}

}  // namespace

ParamRates rates_of(const OptimizerConfig& config, const std::string& param_name) {
  ParamRates rates{.weight_decay = matches_any(config.no_decay, param_name) ? 0 : config.weight_decay};
  for (const ParamGroupConfig& group : config.groups) {
    if (!glob_match(group.match, param_name)) continue;
    rates.lr_scale = group.lr_scale;
    if (group.weight_decay >= 0) rates.weight_decay = group.weight_decay;
    break;
  }
  return rates;
}

Reach reach_of(const std::string& param_name) {
  return param_name.starts_with("tower.") || param_name.starts_with("connector.") ? kByPictures : kAlways;
}

GradSyncOptions gradient_options(const StageConfig& stage) {
  const OptimizerConfig& optimizer = stage.optimizer;
  GradSyncOptions options{.accumulate = configured_dtype(optimizer.grad_dtype), .overlap = stage.parallel.overlap};
  if (optimizer.reduce_dtype != "auto") options.reduce = configured_dtype(optimizer.reduce_dtype);
  return options;
}

AdamW::AdamW(const OptimizerConfig& config, ParamTable& params, GradSync& grads) : config_(config), grads_(&grads) {
  const at::NoGradGuard no_grad;
  for (const Reach reach : {kAlways, kByPictures}) runs_[reach] = rate_runs(config, params, grads, reach);
  const auto options = grads.shard().options().dtype(at::kFloat);
  const int64_t size = grads.shard().numel();
  state_ = {at::zeros({size}, options), at::zeros({size}, options), at::zeros({size}, options)};
  num_steps_ = at::zeros({kReaches}, options.dtype(at::kLong));
  scale_ = at::ones({}, options);
  apply_ = at::zeros({kReaches}, options.dtype(at::kBool));
  for (const ShardPiece& piece : grads.pieces()) {
    const Tensor flat = params[piece.param].value.detach().reshape({-1});
    state_.values.narrow(0, piece.shard_begin, piece.size).copy_(flat.narrow(0, piece.local_begin, piece.size));
  }
}

void AdamW::step(const Tensor& grad_scale, const Tensor& apply, double lr) {
  const at::NoGradGuard no_grad;
  std::exchange(read_, {}).wait();
  num_steps_.add_(apply.to(at::kLong));
  scale_.copy_(grad_scale);
  apply_.copy_(apply);
  const AdamWNumbers numbers{.lr = lr, .beta1 = config_.beta1, .beta2 = config_.beta2, .eps = config_.eps};
  grads_->update_values([&](const WeightBlock& block) {
    for (const Reach reach : {kAlways, kByPictures}) {
      if (runs_[reach].empty()) continue;
      adamw_update(state_, grads_->shard(), scale_, apply_[reach], num_steps_[reach], runs_[reach], numbers, {block});
    }
  });
}

AppliedSteps AdamW::num_steps() const {
  const Tensor host = num_steps_.cpu();
  return {.all = host[kAlways].item<int64_t>(), .with_pictures = host[kByPictures].item<int64_t>()};
}
void AdamW::set_num_steps(const AppliedSteps& steps) {
  num_steps_[kAlways].fill_(steps.all);
  num_steps_[kByPictures].fill_(steps.with_pictures);
}

void AdamW::publish() {
  grads_->scatter_values(state_.values);
}

}  // namespace hanok
