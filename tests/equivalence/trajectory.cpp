#include "tests/equivalence/trajectory.h"

#include <array>
#include <cstdio>

#include "tests/support/close.h"
#include "trainer/freeze.h"
#include "trainer/run_stages.h"
#include "trainer/schedule.h"

namespace hanok {
namespace {

constexpr int64_t kSteps = 20, kRowsPerStep = 6, kWindow = 40;
constexpr int64_t kBucketOfSmallModel = 4096;
constexpr double kAdamEps = 1e-3;

StageConfig stage_of(const TrainingCase& what) {
  StageConfig stage;
  stage.trainable = what.trainable;
  stage.seq_len = small_batches(1).seq_len;
  stage.rows_per_step = kRowsPerStep;
  stage.steps = kSteps;
  stage.optimizer.lr = 2e-3;
  stage.optimizer.warmup_steps = 3;
  stage.optimizer.eps = kAdamEps;
  stage.optimizer.clip_norm = what.clip_norm;
  stage.optimizer.groups = what.groups;
  return stage;
}

Sampler sampler_of(const std::vector<Sample>& samples) {
  Sampler::Source source;
  for (size_t i = 0; i < samples.size(); ++i) {
    source.lengths.push_back(static_cast<int64_t>(samples[i].tokens.size()));
    source.indices.push_back(static_cast<int64_t>(i));
  }
  return Sampler({source}, small_batches(1).seq_len, kRowsPerStep, kWindow, /*seed=*/5);
}

ModelConfig model_of(const TrainingCase& what) {
  return what.experts ? small_moe_model(what.tied) : small_model(what.tied);
}

at::ScalarType gradient_dtype(const TrainingCase& what) {
  return what.dtype == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace

std::vector<TrainingCase> training_cases() {
  return {{.name = "all, tied"},
          {.name = "tower frozen, untied",
           .tied = false,
           .trainable = {"connector.**", "decoder.**"},
           .groups = {{.match = "connector.**", .lr_scale = 3, .weight_decay = 0}}}};
}

TrainingCase expert_case() {
  return {.name = "experts", .tied = false, .dtype = at::kDouble, .experts = true};
}

Trajectory train(const TrainingCase& what,
                 const Groups& groups,
                 at::Device device,
                 const ParallelConfig& layout,
                 const Fault& fault) {
  const StageConfig stage = stage_of(what);
  const std::vector<Sample> samples = real_samples();
  const Sampler sampler = sampler_of(samples);
  Groups used = groups;
  if (fault.forget_expert_sums) used.expert_grad = make_single_groups().expert_grad;
  ModelConfig config = model_of(what);
  if (fault.forget_balance && groups.at.pp == 0) config.decoder.aux_loss = 0;
  Vlm model(config, groups, what.dtype, device, layout);
  initialise(model, /*seed=*/11);
  freeze(model, stage);
  if (fault.forget_replicated_sums)
    for (Param& param : model.params()) param.spec.sum_grad_over_tp = false;
  if (fault.forget_twins)
    for (Param& param : model.params()) param.spec.twin = -1;
  // Buckets small enough for the model to have many.
  GradSync grads(
      model.params(),
      used,
      {.accumulate = gradient_dtype(what), .overlap = layout.overlap, .bucket_elements = kBucketOfSmallModel});
  Execution execution{.recompute = what.recompute, .context = context_way(layout.context)};
  if (!fault.forget_to_await)
    execution.before_use = [&](const std::vector<Tensor>& weights) { grads.await_values(weights); };
  model.set_execution(execution);
  AdamW optimizer(stage.optimizer, model.params(), grads);
  const auto objective = make_objective(stage.objective);
  Learner learner{stage, model, grads, optimizer, *objective};
  std::map<std::string, Tensor> initial;
  for (const Param& param : model.params()) initial[param.spec.name] = param.value.detach().cpu().clone();

  Trajectory out;
  const BatchSpec spec = small_batches(groups.tp->size() * groups.cp->size());
  Cursor cursor;
  for (int64_t step = 0; step < kSteps; ++step) {
    const std::vector<Row> rows = rows_of_slice(sampler.next(cursor), groups.dp->rank(), groups.dp->size());
    std::vector<Batch> batches = batches_of(samples, rows, what.rows_per_micro_batch, spec);
    // Every rank has as many, as the loader says.
    const int64_t own_rows = (kRowsPerStep + groups.dp->size() - 1) / groups.dp->size();
    const int64_t most = (own_rows + what.rows_per_micro_batch - 1) / what.rows_per_micro_batch;
    while (static_cast<int64_t>(batches.size()) < most) batches.push_back(make_batch({}, {}, spec));
    const StepResult result = run_step(learner, batches, lr_at(stage.optimizer, step, kSteps, 1));
    const double balance = what.experts ? model_of(what).decoder.aux_loss * result.aux_loss.item<double>() : 0;
    out.losses.push_back(result.loss.item<double>() + balance);
    out.norms.push_back(result.grad_norm.item<double>());
    const double clip = std::min(1.0, what.clip_norm / out.norms.back());
    if (grads.shard().numel() == 0) continue;  // a stage of a pipeline without trainable weights
    const Tensor gradient = grads.shard().abs() * clip;
    out.largest_gradient = std::max(out.largest_gradient, gradient.max().item<double>());
    out.typical_gradient = std::max(out.typical_gradient, gradient.square().mean().sqrt().item<double>());
  }
  grads.await_values();
  for (const Param& param : model.params()) {
    const Tensor value = param.value.detach().cpu().clone();
    out.largest_update = std::max(out.largest_update, (value - initial[param.spec.name]).abs().max().item<double>());
    out.weights[param.spec.name] = value;
  }
  return out;
}

Tensor local_piece(const Tensor& whole, const ParamSpec& spec, const Groups& groups) {
  if (spec.cut_dim < 0) return whole;
  Tensor global = whole;
  if (spec.inner_dim >= 0) {
    std::vector<Tensor> columns;
    for (const LocalRange& range : local_ranges(inner_cut(spec), groups.etp->rank(), groups.etp->size()))
      columns.push_back(whole.narrow(spec.inner_dim, range.global_begin, range.size));
    global = at::cat(columns, spec.inner_dim);
  }
  std::vector<Tensor> parts;
  for (const LocalRange& range : local_ranges(spec, groups))
    parts.push_back(global.narrow(spec.cut_dim, range.global_begin, range.size));
  if (parts.empty()) return global.narrow(spec.cut_dim, 0, 0);
  return at::cat(parts, spec.cut_dim);
}

Agreement compare(const Trajectory& got, const Trajectory& one_rank, const TrainingCase& what, const Groups& groups) {
  const StageConfig stage = stage_of(what);
  const int64_t tokens = stage.seq_len * kRowsPerStep;
  Agreement out;
  double largest_loss = 0;
  for (const double loss : one_rank.losses) largest_loss = std::max(largest_loss, std::abs(loss));
  out.loss_tolerance = tolerance(at::kFloat, tokens, largest_loss);
  for (size_t i = 0; i < one_rank.losses.size(); ++i) {
    const double error = std::abs(got.losses.at(i) - one_rank.losses[i]);
    out.loss_error = std::isnan(error) ? INFINITY : std::max(out.loss_error, error);
  }

  double lr_scale = 1;
  for (const ParamGroupConfig& group : what.groups) lr_scale = std::max(lr_scale, group.lr_scale);
  const double amplification = kSteps * stage.optimizer.lr * lr_scale / kAdamEps;
  out.weight_tolerance = amplification * tolerance(at::kFloat, tokens, one_rank.largest_gradient);
  out.mean_tolerance = amplification * tolerance(at::kFloat, tokens, one_rank.typical_gradient);
  const Vlm names(model_of(what), make_single_groups(), at::kFloat, at::kMeta);
  double sum = 0, count = 0;
  for (const Param& param : names.params()) {
    if (!got.weights.contains(param.spec.name)) continue;  // on another stage
    const Tensor& value = got.weights.at(param.spec.name);
    const Tensor want = local_piece(one_rank.weights.at(param.spec.name), param.spec, groups);
    if (value.numel() == 0) continue;
    const Tensor error = (value - want).abs();
    const double largest = error.max().item<double>();
    sum += error.sum(at::kDouble).item<double>();
    count += static_cast<double>(error.numel());
    if (largest <= out.weight_error) continue;
    out.weight_error = largest;
    out.worst = param.spec.name;
  }
  out.mean_residual = sum / count;
  out.ok = out.loss_error <= out.loss_tolerance && out.weight_error <= out.weight_tolerance &&
           out.mean_residual <= out.mean_tolerance;
  return out;
}

void Agreement::include(const Agreement& other) {
  const bool both = ok && other.ok;
  const double loss = std::max(loss_error, other.loss_error), mean = std::max(mean_residual, other.mean_residual);
  if (other.weight_error >= weight_error) *this = other;
  loss_error = loss;
  mean_residual = mean;
  ok = both;
}

std::string Agreement::text() const {
  std::array<char, 256> text;
  std::snprintf(text.data(),
                text.size(),
                "loss error %.2g (allowed %.2g), weight error %.2g (%.2g; %s), mean residual %.2g (%.2g)",
                loss_error,
                loss_tolerance,
                weight_error,
                weight_tolerance,
                worst.c_str(),
                mean_residual,
                mean_tolerance);
  return text.data();
}

}  // namespace hanok
