#include "launch/estimate.h"

#include <algorithm>
#include <tuple>

#include "parallel/grad_sync.h"
#include "trainer/run_stages.h"

namespace hanok {
namespace {

constexpr double kMiB = 1 << 20;
// Not derived and not measured here: what a CUDA context with libtorch's kernels takes, and what NCCL takes for the
// channels of one communicator.
constexpr double kContextBytes = 600 * kMiB, kCommunicatorBytes = 200 * kMiB;
constexpr double kBucket = 1 << 24;  // elements of the temporary buffer in parallel/grad_sync.cpp

at::ScalarType dtype_on(const ModelConfig& model, const GpuConfig* gpu) {
  if (model.dtype == "float32") return at::kFloat;
  if (model.dtype == "bfloat16") return at::kBFloat16;
  return gpu && gpu->has_bfloat16() ? at::kBFloat16 : at::kFloat;
}

at::ScalarType accumulate_type_of(const OptimizerConfig& config) {
  return config.grad_dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
}

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

struct Load {
  MicroBatch batch;  // of a rank
  Work work;         // of a step, all ranks
};

Load load_of(const RunConfig& config, const StageConfig& stage, const Groups& groups, const Supposed& supposed) {
  const int64_t merge = config.model.connector.merge * config.model.connector.merge;
  const bool pictures = config.model.tower.type != "none" && supposed.picture_share > 0;
  const int64_t vision_of_row =
      pictures ? static_cast<int64_t>(static_cast<double>(stage.seq_len) * supposed.picture_share) : 0;
  const int64_t rows = stage.rows_per_micro_batch;
  const int64_t cp = groups.cp->size(), multiple = (groups.sequence_parallel ? groups.tp->size() : 1) * cp;
  const auto share = [cp](int64_t count) { return (count + cp - 1) / cp; };
  Load load;
  load.batch = {.tokens = (rows * stage.seq_len + multiple - 1) / multiple * multiple / cp,
                .labels = share(rows * (stage.seq_len - vision_of_row)),
                .patches = share(rows * vision_of_row) * merge,
                .vision_tokens = share(rows * vision_of_row)};
  const double all = static_cast<double>(stage.rows_per_step), length = static_cast<double>(stage.seq_len);
  const double patches = all * static_cast<double>(vision_of_row * merge);
  load.work = {
      .tokens = all * length,
      .labels = all * (length - static_cast<double>(vision_of_row)),
      .token_pairs = all * length * length,
      .patches = patches,
      .patch_pairs = patches * static_cast<double>(std::min<int64_t>(supposed.patches_per_picture,
                                                                     std::max<int64_t>(1, vision_of_row * merge)))};
  return load;
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

/// Elements of the flat buffers: each rank of a group has the shards of all.
double flat_elements(const ParamTable& params, const Groups& groups) {
  double elements = 0;
  for (const bool experts : {false, true}) {
    const int parts = (experts ? groups.expert_grad : groups.grad)->size();
    elements += static_cast<double>(shard_size(params, parts, experts)) * parts;
  }
  return elements;
}

double shard_elements(const ParamTable& params, const Groups& groups) {
  return static_cast<double>(shard_size(params, groups.grad->size(), false) +
                             shard_size(params, groups.expert_grad->size(), true));
}

/// The bucket in which gradients that ranks of tp share are summed; norm and update work in place.
double bucket_bytes(const ParamTable& params, const Groups& groups, at::ScalarType accumulate) {
  if (groups.tp->size() == 1) return 0;
  double elements = 0;
  for (const Param& param : params) {
    if (!param.trainable) continue;
    if (param.spec.cut_dim < 0) {
      elements += param.spec.sum_grad_over_tp ? static_cast<double>(param.value.numel()) : 0;
      continue;
    }
    const std::vector<LocalRange> ranges = local_ranges(param.spec, groups);
    const bool shared = std::any_of(ranges.begin(), ranges.end(), [](const auto& range) { return range.replicas > 1; });
    elements += shared ? static_cast<double>(param.value.numel()) : 0;
  }
  return std::min(elements, kBucket) * static_cast<double>(c10::elementSize(accumulate));
}

/// Time of the collectives between layers. Two gathers and two scatters of the stream a block and pass (facts: 8 L T D
/// (t - 1) / t a micro-batch); a recomputed block's forward communicates once more.
double tensor_parallel_s(
    const ModelConfig& config, const StageConfig& stage, const Estimate& e, const Load& load, const GpuConfig& gpu) {
  const double t = e.mesh.tp;
  if (t == 1) return 0;
  const double share = stage.recompute == "full" ? 1.0 / static_cast<double>(stage.recompute_every) : 0;
  const double passes = 8 + 4 * share, size = static_cast<double>(c10::elementSize(e.dtype));
  const double decoder = static_cast<double>(config.decoder.layers * config.decoder.hidden) *
                         static_cast<double>(load.batch.tokens),
               tower = static_cast<double>(config.tower.depth * config.tower.hidden) *
                       static_cast<double>(load.batch.patches);
  const double bytes = passes * (decoder + tower) * size * (t - 1) / t * static_cast<double>(e.micro_batches);
  return bytes / (gpu.link.bus_gb_s * 1e9);
}

/// Time of the collectives of attention over cp, not overlapped. Gathered: keys and values in both passes, their
/// gradients summed in the backward. Ring: the same, the gradients in f32. By heads: all of q, k, v there and the
/// result back, in both passes.
double context_parallel_s(
    const ModelConfig& config, const StageConfig& stage, const Estimate& e, const Load& load, const GpuConfig& gpu) {
  const double n = e.mesh.cp;
  if (n == 1) return 0;
  const DecoderConfig& d = config.decoder;
  const double size = static_cast<double>(c10::elementSize(e.dtype));
  const double again = stage.recompute == "full" ? 1.0 / static_cast<double>(stage.recompute_every) : 0;
  const double rows = static_cast<double>(load.batch.tokens * d.layers * d.head_dim) / e.mesh.tp;
  const double kv = 2 * rows * static_cast<double>(d.kv_heads), q = rows * static_cast<double>(d.heads);
  const bool heads = stage.parallel.context == "heads", ring = stage.parallel.context == "ring";
  const double bytes =
      heads ? (2 * q + kv) * (n - 1) / n * (2 + again) * size : kv * (n - 1) * ((2 + again) * size + (ring ? 4 : size));
  return bytes * static_cast<double>(e.micro_batches) / (gpu.link.bus_gb_s * 1e9);
}

Estimate::Seconds seconds_of(const RunConfig& config,
                             const StageConfig& stage,
                             const PlannedModel& planned,
                             const Load& load,
                             const Estimate& e,
                             double passed_bytes,
                             const GpuConfig& gpu) {
  const Groups& groups = planned.groups;
  const double ranks = e.mesh.world(), tera = 1e12;
  const char* key = e.dtype == at::kBFloat16 ? "bfloat16" : "float32";
  const auto rate = gpu.matmul_tf.find(key);  // an emulated dtype runs at the rate of float32
  const double matmul = (rate == gpu.matmul_tf.end() ? gpu.matmul_tf.at("float32") : rate->second) * tera * ranks;
  Estimate::Seconds s;
  for (const Flops* part : {&e.flops.tower, &e.flops.connector, &e.flops.decoder, &e.flops.head})
    s.matrices += (part->total() + part->again) / matmul;
  for (const Flops* part : {&e.flops.tower_attention, &e.flops.attention})
    s.attention +=
        ((part->forward + part->again) / gpu.attention_tf.forward + part->backward / gpu.attention_tf.backward) /
        (tera * ranks);
  const double copy = gpu.copy_gb_s * 1e9;
  // Norms, rotations, activations: the forward reads and writes what it keeps, the backward reads it and the gradient
  // of the result and writes that of the input.
  s.memory = 5 * passed_bytes * static_cast<double>(e.micro_batches) / copy;
  const double shard = shard_elements(planned.model->params(), groups);
  // Master and moments read and written, the gradient zeroed, read for the norm and for the update, the weight written.
  s.optimizer = shard * (24 + 3 * 4 + static_cast<double>(c10::elementSize(e.dtype))) / copy;
  s.tensor_parallel = tensor_parallel_s(config.model, stage, e, load, gpu);
  s.context_parallel = context_parallel_s(config.model, stage, e, load, gpu);
  const double n = groups.grad->size();
  const double summed =
      shard * n *
      static_cast<double>(c10::elementSize(accumulate_type_of(stage.optimizer)) + c10::elementSize(e.dtype));
  s.data_parallel = summed * (n - 1) / n / (gpu.link.bus_gb_s * 1e9);
  return s;
}

}  // namespace

Supposed supposed_by_default(const RunConfig& config) {
  if (config.model.tower.type == "none") return {};
  const int64_t edge = config.model.tower.patch;
  const int64_t merge = config.model.connector.merge * config.model.connector.merge;
  int64_t patches = 1024;
  if (config.data.max_pixels > 0) patches = std::min(patches, config.data.max_pixels / (edge * edge));
  return {.picture_share = 0.5, .patches_per_picture = std::max(merge, patches / merge * merge)};
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
  const double size = static_cast<double>(c10::elementSize(accumulate_type_of(config)));
  const bool experts = shard_size(params, 1, true) > 0;  // then a tensor of its own holds both shards
  return (flat_elements(params, groups) + (experts ? shard_elements(params, groups) : 0)) * size;
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
                   .ep = static_cast<int>(layout.ep)});
  const int rank = mesh.rank_at(pp_stage, 0, 0, 0);
  PlannedModel out{.groups = make_planned_groups(mesh, rank, layout.sequence && layout.tp > 1)};
  out.model = std::make_unique<Vlm>(config.model, out.groups, dtype_on(config.model, gpu), at::kMeta, layout);
  freeze(*out.model, stage);
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
  for (int chunk = 0; chunk < shape.chunks; ++chunk) {
    const PieceRange& range = planned.model->pieces().at(piece_of(shape, {rank, chunk}));
    out.layers += range.last - range.first;
  }
  for (const Param& param : planned.model->params()) out.parameters += static_cast<double>(param.value.numel());
  out.live = std::max(1.0, static_cast<double>(peak_live_chunks(shape, rank, micro_batches)) / shape.chunks);
  return out;
}

Estimate estimate_stage(const RunConfig& config,
                        const StageConfig& stage,
                        const PlannedModel& planned,
                        const Supposed& supposed,
                        const GpuConfig* gpu) {
  const ParamTable& params = planned.model->params();
  const Groups& groups = planned.groups;
  Load load = load_of(config, stage, groups, supposed);
  load.batch.trains_before = trains_before(*planned.model);
  const int64_t every = stage.recompute == "full" ? stage.recompute_every : 0;
  Estimate e{.mesh = groups.mesh.shape(), .dtype = dtype_on(config.model, gpu)};
  const KernelSet kernels{.on_gpu = gpu != nullptr,
                          .attention = attention_on(stage.attention, gpu, e.dtype),
                          .context = context_way(stage.parallel.context)};
  e.attention = name(kernels.attention);
  // Pieces of samples go to the kernel that gives log-sums for them (model/kernels/attention_pieces.cpp).
  if (gpu && groups.cp->size() > 1 && kernels.context != ContextWay::kHeads)
    e.attention += gpu->compute_capability >= 8 && e.dtype == at::kBFloat16 ? ", flash over cp" : ", plain over cp";
  e.parameters = count(planned.model->whole(), false);
  e.trainable = count(planned.model->whole(), true);
  e.tokens_per_step = load.work.tokens;
  const int64_t rows_of_rank = (stage.rows_per_step + e.mesh.dp - 1) / e.mesh.dp;
  e.micro_batches = (rows_of_rank + stage.rows_per_micro_batch - 1) / stage.rows_per_micro_batch;

  const ActivationBytes act = activation_bytes(config.model, params, groups, load.batch, every, kernels);
  e.always = {{"weights", weight_bytes(params, groups)},
              {"gradients", gradient_bytes(params, groups, stage.optimizer)},
              {"optimizer (f32 master, two moments)", optimizer_bytes(params, groups)}};
  if (gpu) {
    const int used =
        (groups.tp->size() > 1) + 2 * (groups.grad->size() > 1) + (groups.cp->size() > 1) + (groups.world->size() > 1);
    e.always.push_back({"CUDA context (allowance)", kContextBytes});
    if (used > 0) e.always.push_back({"NCCL communicators (allowance)", used * kCommunicatorBytes});
  }
  e.kept = {{"input", act.input},
            {"tower", act.tower},
            {"connector", act.connector},
            {"decoder", act.decoder},
            {"final states and loss", act.head},
            {"handed on to the next stage", act.stream}};
  const double bucket = bucket_bytes(params, groups, accumulate_type_of(stage.optimizer));
  e.passing = {{"chunks of logits", act.logits},
               {"gradients of one block", act.block_gradients},
               {"  of which attention workspace", act.attention_workspace},
               {"a recomputed block", act.redone_block},
               {"gradients summed over tp", bucket}};
  Estimate::Stage own = stage_of(planned, act, static_cast<int>(e.micro_batches));
  const double others = (own.live - 1) * own.kept;
  e.kept.push_back({"other micro-batches under way", others});
  e.peak_bytes = e.always_bytes() + std::max(others + act.peak, bucket);
  own.always = e.always_bytes();
  own.peak = e.peak_bytes;
  e.stages = {own};
  e.flops = flops_by_part(config.model, planned.model->whole(), load.work, every);
  if (gpu) {
    const ActivationBytes all = activation_bytes(config.model, params, groups, load.batch, 0, kernels);
    e.seconds = seconds_of(config, stage, planned, load, e, all.kept(), *gpu);
    e.seconds->pipeline = e.seconds->total() * waiting_share(planned.model->pipeline(), e.micro_batches);
  }
  return e;
}

}  // namespace

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
  return worst;
}

}  // namespace hanok
