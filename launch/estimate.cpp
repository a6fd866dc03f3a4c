#include "launch/estimate.h"

#include <algorithm>
#include <tuple>

#include "configs/schema/check.h"
#include "launch/estimate_time.h"
#include "parallel/grad_sync.h"
#include "trainer/configured_dtype.h"
#include "trainer/data.h"
#include "trainer/freeze.h"
#include "trainer/optimizer.h"
#include "trainer/run_stages.h"

namespace hanok {
namespace {

constexpr double kMiB = 1 << 20;
// Not derived and not measured here: what a CUDA context with libtorch's kernels takes, and what NCCL takes for the
// channels of one communicator.
constexpr double kContextBytes = 600 * kMiB, kCommunicatorBytes = 200 * kMiB;

/// As model/kernels/attention.cpp chooses.
AttentionStore attention_on(const std::string& wanted, const GpuConfig* gpu, at::ScalarType dtype) {
  if (gpu == nullptr) return AttentionStore::kOwn;
  const bool half = dtype == at::kBFloat16 || dtype == at::kHalf;
  if (wanted == "cudnn") return AttentionStore::kCudnn;
  if (wanted == "flash") return AttentionStore::kFlash;
  if (wanted == "efficient" || wanted == "plain" || !half || gpu->compute_capability < 8)
    return AttentionStore::kEfficient;
  return gpu->compute_capability >= 9 ? AttentionStore::kCudnn : AttentionStore::kFlash;
}

const char* name(AttentionStore store) {
  switch (store) {
    case AttentionStore::kOwn: return "own loops";
    case AttentionStore::kCudnn: return "cudnn";
    case AttentionStore::kFlash: return "flash";
    case AttentionStore::kEfficient: return "memory-efficient";
  }
  return "";
}

double count(const ParamTable& params, bool trainable_only) {
  double total = 0;
  for (const Param& param : params) {
    if (trainable_only && !param.trainable) continue;
    double n = 1;
    for (const int64_t size : param.spec.shape) n *= static_cast<double>(size);
    total += n;
  }
  return total;
}

double flat_elements(const ParamTable& params, const Groups& groups) {
  return static_cast<double>(gradient_sizes(params, groups).buffer);
}

double shard_elements(const ParamTable& params, const Groups& groups) {
  return static_cast<double>(gradient_sizes(params, groups).shard);
}

/// The bucket in which gradients that ranks of tp share are summed; norm and update work in place.
double bucket_bytes(const ParamTable& params, const Groups& groups, at::ScalarType accumulate) {
  double elements = 0;
  for (const Param& param : params)
    if (param.trainable && is_shared_over_tp(param.spec, groups)) elements += static_cast<double>(param.value.numel());
  return std::min(elements, static_cast<double>(kSumElements)) * static_cast<double>(c10::elementSize(accumulate));
}

}  // namespace

at::ScalarType dtype_on(const ModelConfig& model, const GpuConfig* gpu) {
  if (model.dtype == "float32") return at::kFloat;
  if (model.dtype == "bfloat16") return at::kBFloat16;
  return gpu && gpu->has_bfloat16() ? at::kBFloat16 : at::kFloat;
}

/// `auto` over cp: heads where they can be dealt, as model/layers/context_attention.cpp does on GPUs.
KernelSet kernels_on(const RunConfig& config, const StageConfig& stage, const GpuConfig* gpu) {
  KernelSet out{.on_gpu = gpu != nullptr,
                .attention = attention_on(stage.attention, gpu, dtype_on(config.model, gpu)),
                .context = context_way(stage.parallel.context)};
  ParallelConfig by_heads = stage.parallel;
  by_heads.context = "heads";
  if (gpu && out.context == ContextWay::kAuto && violations(config.model, by_heads).empty())
    out.context = ContextWay::kHeads;
  return out;
}

int64_t micro_batches_of(const StageConfig& stage, const MeshShape& mesh) {
  const int64_t rows_of_rank = (stage.rows_per_step + mesh.dp - 1) / mesh.dp;
  return (rows_of_rank + stage.rows_per_micro_batch - 1) / stage.rows_per_micro_batch;
}

HeldElements held_elements(const ParamTable& params, const Groups& groups) {
  double experts = 0;
  for (const Param& param : params)
    if (param.trainable && is_of_experts(param.spec)) experts += static_cast<double>(param.value.numel());
  experts /= groups.expert_grad->size();
  const GradSizes sizes = gradient_sizes(params, groups);
  return {static_cast<double>(sizes.shard) - experts, experts, static_cast<double>(sizes.buffer)};
}

Supposed supposed_by_default(const RunConfig& config) {
  if (config.model.tower.type == "none") return {};
  const int64_t edge = config.model.tower.patch;
  const int64_t merge = config.model.connector.merge * config.model.connector.merge;
  int64_t patches = 1024;
  if (config.data.max_pixels > 0) patches = std::min(patches, config.data.max_pixels / (edge * edge));
  return {.picture_share = 0.5, .patches_per_picture = std::max(merge, patches / merge * merge)};
}

Supposed supposed_of(const RunConfig& config, const StageConfig& stage, const Work& step) {
  Supposed out;
  if (step.tokens <= 0) return out;
  out.picture_share = picture_share(config.model, step);
  if (step.patches > 0) out.patches_per_picture = static_cast<int64_t>(step.patch_pairs / step.patches);
  if (out.picture_share < 1) out.label_share = step.labels / (step.tokens * (1 - out.picture_share));
  out.sample_tokens = step.token_pairs / step.tokens;
  out.fill = step.tokens / static_cast<double>(stage.seq_len * stage.rows_per_step);
  return out;
}

StepLoad load_of(const RunConfig& config, const StageConfig& stage, const Groups& groups, const Supposed& supposed) {
  const int64_t merge = config.model.connector.merge * config.model.connector.merge;
  const bool pictures = config.model.tower.type != "none" && supposed.picture_share > 0;
  const double length = static_cast<double>(stage.seq_len);
  const int64_t vision_of_row = pictures ? static_cast<int64_t>(length * supposed.fill * supposed.picture_share) : 0;
  const double tokens_of_row = length * supposed.fill;
  const double labels_of_row = (tokens_of_row - static_cast<double>(vision_of_row)) * supposed.label_share;
  const int64_t rows = stage.rows_per_micro_batch;
  const int64_t cp = groups.cp->size(), multiple = pad_multiple_of(groups);
  const auto share = [cp](int64_t count) { return (count + cp - 1) / cp; };
  StepLoad load;
  load.batch = {.tokens = (rows * stage.seq_len + multiple - 1) / multiple * multiple / cp,
                .labels = share(static_cast<int64_t>(static_cast<double>(rows) * labels_of_row)),
                .patches = share(rows * vision_of_row) * merge,
                .vision_tokens = share(rows * vision_of_row)};
  const auto all = static_cast<double>(stage.rows_per_step);
  const double patches = all * static_cast<double>(vision_of_row * merge);
  const double sample = supposed.sample_tokens > 0 ? supposed.sample_tokens : length;
  load.work = {
      .tokens = all * tokens_of_row,
      .labels = all * labels_of_row,
      .token_pairs = all * tokens_of_row * sample,
      .patches = patches,
      .patch_pairs = patches * static_cast<double>(std::min<int64_t>(supposed.patches_per_picture,
                                                                     std::max<int64_t>(1, vision_of_row * merge)))};
  load.fill = supposed.fill;
  return load;
}

double Estimate::always_bytes() const {
  double sum = 0;
  for (const Amount& amount : always) sum += amount.bytes;
  return sum;
}

double weight_bytes(const ParamTable& params, const Groups& groups) {
  double bytes = 0, size = 0;
  for (const Param& param : params) {
    if (!param.trainable) bytes += static_cast<double>(param.value.nbytes());
    if (param.trainable) size = static_cast<double>(param.value.element_size());
  }
  return bytes + size * flat_elements(params, groups);
}

double gradient_bytes(const ParamTable& params, const Groups& groups, const OptimizerConfig& config) {
  const double size = static_cast<double>(c10::elementSize(configured_dtype(config.grad_dtype)));
  return flat_elements(params, groups) * size;
}

double optimizer_bytes(const ParamTable& params, const Groups& groups) {
  return shard_elements(params, groups) * 3 * 4;
}

bool fits(const Estimate& estimate, const GpuConfig& gpu) {
  return estimate.peak_bytes <= gpu.memory_gib * 1024 * kMiB;
}

PlannedModel plan_model(const RunConfig& config,
                        const StageConfig& stage,
                        const ParallelConfig& layout,
                        const GpuConfig* gpu,
                        int pp_stage) {
  const Mesh mesh({.pp = static_cast<int>(layout.pp),
                   .dp = static_cast<int>(std::max<int64_t>(1, layout.dp)),
                   .cp = static_cast<int>(layout.cp),
                   .tp = static_cast<int>(layout.tp),
                   .ep = static_cast<int>(layout.ep),
                   .etp = static_cast<int>(layout.etp)});
  const int rank = mesh.rank_at(pp_stage, 0, 0, 0);
  PlannedModel out{.groups = make_planned_groups(mesh, rank, layout.sequence && layout.tp > 1)};
  out.model = std::make_unique<Vlm>(config.model, out.groups, dtype_on(config.model, gpu), at::kMeta, layout);
  freeze(*out.model, stage);
  return out;
}

StageConfig with_balanced_pipeline(const RunConfig& config,
                                   const StageConfig& stage,
                                   const Supposed& supposed,
                                   const GpuConfig* gpu) {
  StageConfig out = stage;
  if (stage.parallel.pp == 1) return out;
  const SublayerCosts costs =
      gpu ? sublayer_seconds(config, stage, supposed, *gpu)
          : sublayer_flops(config.model, load_of(config, stage, make_single_groups(), supposed).work, stage);
  balance_pipeline(config.model, costs, out.parallel);
  return out;
}

namespace {

/// Whether gradients pass the first piece of this stage.
bool trains_before(const Vlm& model) {
  const int first = piece_of(model.pipeline(), {model.groups().at.pp, 0});
  return std::any_of(model.whole().begin(), model.whole().end(), [&](const Param& param) {
    return param.trainable && model.piece_of_weight(param.spec.name) < first;
  });
}

Estimate::Stage stage_of(const PlannedModel& planned, const ActivationBytes& act, int micro_batches) {
  const PipelineShape& shape = planned.model->pipeline();
  const int rank = planned.groups.at.pp;
  Estimate::Stage out{.kept = act.input + act.kept()};
  const auto range_of = [&](int chunk) { return planned.model->pieces().at(piece_of(shape, {rank, chunk})); };
  for (int chunk = 0; chunk < shape.chunks; ++chunk) out.layers += range_of(chunk).layers();
  for (const Param& param : planned.model->params()) out.parameters += static_cast<double>(param.value.numel());
  std::vector<double> sizes;  // of what each chunk keeps
  for (int chunk = 0; chunk < shape.chunks; ++chunk) {
    const PieceRange range = range_of(chunk);
    sizes.push_back(act.decoder * act.decoder_share(range.first, range.last) + act.stream / shape.chunks +
                    (range.is_first ? act.input + act.tower + act.connector : 0) + (range.is_last ? act.head : 0));
  }
  out.live = std::max(1.0, peak_live_chunks(shape, rank, micro_batches, sizes) / out.kept);
  return out;
}

/// Where weight gradients are put off, what they are products of waits whole, also of layers that ran again for it.
double put_off_bytes(const RunConfig& config,
                     const PlannedModel& planned,
                     const StepLoad& load,
                     const ActivationBytes& act,
                     const StageConfig& stage,
                     const KernelSet& kernels,
                     int64_t micro_batches) {
  const PipelineShape& shape = planned.model->pipeline();
  const Recompute recompute = recompute_of(stage);
  if (!shape.splits_weight_gradients() || recompute.every == 0) return 0;
  int waiting = 0, most = 0;
  for (const Action& action : pipeline_actions(shape, planned.groups.at.pp, static_cast<int>(micro_batches))) {
    waiting += action.kind == Action::Kind::kBackwardInput;
    waiting -= action.kind == Action::Kind::kBackwardWeight;
    most = std::max(most, waiting);
  }
  const ActivationBytes all =
      activation_bytes(config.model, planned.model->params(), planned.groups, load.batch, {}, kernels);
  return std::max(0.0, all.kept() - act.kept()) * most / shape.chunks;
}

/// Gradients of a bucket in the dtype that they travel in, where that is not the one in which they add up.
double travelling_bytes(const ParamTable& params, const Groups& groups, const OptimizerConfig& config) {
  const std::string& dtype = config.reduce_dtype;
  if (dtype == "auto" || dtype == config.grad_dtype || groups.grad->size() == 1) return 0;
  double largest = static_cast<double>(kBucketElements);  // one that is larger has a bucket of its own
  for (const Param& param : params)
    if (param.trainable) largest = std::max(largest, static_cast<double>(param.value.numel()));
  return largest * static_cast<double>(c10::elementSize(configured_dtype(dtype))) * (1 + 1.0 / groups.grad->size());
}

Estimate estimate_stage(const RunConfig& config,
                        const StageConfig& stage,
                        const PlannedModel& planned,
                        const Supposed& supposed,
                        const GpuConfig* gpu) {
  const ParamTable& params = planned.model->params();
  const Groups& groups = planned.groups;
  StepLoad load = load_of(config, stage, groups, supposed);
  load.batch.trains_before = trains_before(*planned.model);
  Estimate e{.mesh = groups.mesh.shape(), .dtype = dtype_on(config.model, gpu)};
  const KernelSet kernels = kernels_on(config, stage, gpu);
  e.attention = name(kernels.attention);
  // Pieces of samples go to the kernel that gives log-sums for them (model/kernels/attention_pieces.cpp).
  if (gpu && groups.cp->size() > 1 && kernels.context != ContextWay::kHeads)
    e.attention += gpu->compute_capability >= 8 && e.dtype == at::kBFloat16 ? ", flash over cp" : ", plain over cp";
  e.parameters = count(planned.model->whole(), false);
  e.active = active_parameters(config.model, planned.model->whole());
  e.trainable = count(planned.model->whole(), true);
  e.tokens_per_step = load.work.tokens;
  e.micro_batches = micro_batches_of(stage, e.mesh);

  const ActivationBytes act = activation_bytes(config.model, params, groups, load.batch, recompute_of(stage), kernels);
  e.always = {{"weights", weight_bytes(params, groups)},
              {"gradients", gradient_bytes(params, groups, stage.optimizer)},
              {"optimizer (f32 master, two moments)", optimizer_bytes(params, groups)}};
  if (gpu) {
    const int used =
        (groups.tp->size() > 1) + 2 * (groups.grad->size() > 1) + (groups.cp->size() > 1) + (groups.world->size() > 1);
    e.always.push_back({"CUDA context (allowance)", kContextBytes});
    if (used > 0) e.always.push_back({"NCCL communicators (allowance)", used * kCommunicatorBytes});
    const int64_t pp = groups.pp->size();
    const double links = static_cast<double>(kLinkBytes * std::min<int64_t>(pp - 1, 2));
    if (pp > 1) e.always.push_back({"messages of pipeline neighbours", links});
    e.allowance_bytes = kContextBytes + used * kCommunicatorBytes + links;
  }
  e.kept = {{"input", act.input},
            {"tower", act.tower},
            {"connector", act.connector},
            {"decoder", act.decoder},
            {"final states and loss", act.head},
            {"handed on to the next stage", act.stream}};
  const double bucket = bucket_bytes(params, groups, configured_dtype(stage.optimizer.grad_dtype));
  const double travelling = travelling_bytes(params, groups, stage.optimizer);
  e.passing = {{"chunks of logits", act.logits},
               {"gradients of one block", act.block_gradients},
               {"  of which attention workspace", act.attention_workspace},
               {"a recomputed block", act.redone_block},
               {"gradients summed over tp", bucket},
               {"gradients on their way", travelling}};
  Estimate::Stage own = stage_of(planned, act, static_cast<int>(e.micro_batches));
  const double others =
      (own.live - 1) * own.kept + put_off_bytes(config, planned, load, act, stage, kernels, e.micro_batches);
  e.kept.push_back({"other micro-batches under way", others});
  e.peak_bytes = e.always_bytes() + std::max(others + act.peak + travelling, bucket);
  own.always = e.always_bytes();
  own.peak = e.peak_bytes;
  e.on_host_bytes = own.live * act.on_host;
  e.stages = {own};
  e.flops = flops_by_part(config.model, planned.model->whole(), load.work, recompute_of(stage));
  return e;
}

/// `unpiped`: all of the model on the other axes of the layout. The stage is kept by reference.
TimedStage timed_stage(const RunConfig& config,
                       const StageConfig& stage,
                       const PlannedModel& unpiped,
                       const PipelineShape& shape,
                       const Supposed& supposed,
                       const GpuConfig& gpu) {
  const Groups& groups = unpiped.groups;
  const ParamTable& params = unpiped.model->params();
  const StepLoad load = load_of(config, stage, groups, supposed);
  const KernelSet kernels = kernels_on(config, stage, &gpu);
  const Recompute recompute = recompute_of(stage);
  return {.config = config,
          .stage = stage,
          .groups = groups,
          .shape = shape,
          .products = products_of(config.model, params, load.work, recompute),
          .load = load,
          .micro_batches = micro_batches_of(stage, groups.mesh.shape()),
          .dtype = dtype_on(config.model, &gpu),
          .kernels = kernels,
          .without = activation_bytes(config.model, params, groups, load.batch, {}, kernels),
          .kept = activation_bytes(config.model, params, groups, load.batch, recompute, kernels),
          .held = held_elements(params, groups)};
}

}  // namespace

Estimate::Seconds step_seconds(const RunConfig& config,
                               const StageConfig& stage,
                               const PlannedModel& unpiped,
                               const PipelineShape& shape,
                               const Supposed& supposed,
                               const GpuConfig& gpu) {
  return seconds_of(timed_stage(config, stage, unpiped, shape, supposed, gpu), gpu);
}

SublayerCosts sublayer_seconds(const RunConfig& config,
                               const StageConfig& stage,
                               const Supposed& supposed,
                               const GpuConfig& gpu) {
  ParallelConfig layout = stage.parallel;
  layout.pp = 1;
  const PlannedModel unpiped = plan_model(config, stage, layout, &gpu);
  return sublayer_seconds(timed_stage(config, stage, unpiped, {}, supposed, gpu), gpu);
}

Estimate estimate(const RunConfig& config,
                  const StageConfig& stage,
                  const PlannedModel& planned,
                  const Supposed& supposed,
                  const GpuConfig* gpu) {
  Estimate worst = estimate_stage(config, stage, planned, supposed, gpu);
  std::vector<Estimate::Stage> stages = worst.stages;
  ParallelConfig layout = stage.parallel;
  const MeshShape& mesh = worst.mesh;
  std::tie(layout.pp, layout.dp, layout.cp, layout.tp) = std::tuple(mesh.pp, mesh.dp, mesh.cp, mesh.tp);
  for (int rank = 1; rank < mesh.pp; ++rank) {
    Estimate next = estimate_stage(config, stage, plan_model(config, stage, layout, gpu, rank), supposed, gpu);
    stages.push_back(next.stages.front());
    if (next.peak_bytes > worst.peak_bytes) worst = std::move(next);
  }
  worst.stages = std::move(stages);
  if (!gpu) return worst;
  layout.pp = 1;
  const PlannedModel unpiped = mesh.pp > 1 ? plan_model(config, stage, layout, gpu) : PlannedModel{};
  worst.seconds =
      step_seconds(config, stage, mesh.pp > 1 ? unpiped : planned, planned.model->pipeline(), supposed, *gpu);
  return worst;
}

}  // namespace hanok
