// Every key that a run can say, each written once: a member and its line in fields(). Reading, --set, the echo, the
// hash and the key reference are five readers of the same fields() list (read.h).
//
// A line is v("key", self.member, "what it means; unit", rule). Rules: at_least(x), between(a, b), one_of({...}).
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace hanok {

struct FieldRule {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  std::vector<std::string_view> choices;
};
inline FieldRule at_least(double min) {
  return {.min = min};
}
inline FieldRule between(double min, double max) {
  return {.min = min, .max = max};
}
/// Sizes of a model: bounded, so that no product of them leaves 64 bits.
inline FieldRule size_from(double min) {
  return between(min, 1 << 20);
}
/// Lengths and durations: bounded, so that none leaves 64 bits as steps, nanoseconds or a product of them.
inline constexpr double kMaxSteps = 1e12, kMaxTokens = 1e18, kMaxEpochs = 1e6, kMaxSeconds = 1e8;
inline FieldRule one_of(std::vector<std::string_view> choices) {
  return {.choices = std::move(choices)};
}

/// How folders keep experts: the values of model.experts_on_disk besides `auto`.
inline constexpr std::array<std::string_view, 3> kExpertLayouts = {"fused_in_out", "fused_out_in", "separate"};

struct TowerConfig {
  std::string type = "qwen3vl_vit";
  int64_t depth = 0, hidden = 0, ffn = 0, heads = 0;
  int64_t channels = 3, patch = 16, temporal_patch = 2, position_grid = 48;

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("type", self.type, "vision tower, or `none`", one_of({"qwen3vl_vit", "none"}));
    v("depth", self.depth, "blocks", size_from(0));
    v("hidden", self.hidden, "width", size_from(0));
    v("ffn", self.ffn, "feed-forward width", size_from(0));
    v("heads", self.heads, "attention heads", size_from(0));
    v("channels", self.channels, "colour channels", between(1, 64));
    v("patch", self.patch, "patch edge, pixels", between(1, 1024));
    v("temporal_patch", self.temporal_patch, "frames per patch", between(1, 64));
    v("position_grid", self.position_grid, "edge of the learned position table (48: 2304 rows)", between(1, 1 << 14));
  }
};

struct ConnectorConfig {
  std::string type = "merger_mlp";
  int64_t merge = 2, out = 0;

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("type", self.type, "vision-to-language connector", one_of({"merger_mlp"}));
    v("merge", self.merge, "patches merged along each edge", between(1, 16));
    v("out", self.out, "output width; 0: model.decoder.hidden", size_from(0));
  }
};

struct DecoderConfig {
  std::string type = "qwen3_dense";
  // type qwen3_moe only
  int64_t experts = 0, experts_per_token = 0, expert_ffn = 0, expert_step = 1;
  std::vector<int64_t> dense_layers;
  bool norm_topk = true;
  double aux_loss = 0.001;

  int64_t layers = 0, hidden = 0, ffn = 0, heads = 0, kv_heads = 0, head_dim = 128, vocab = 151936;
  double rope_theta = 5e6, norm_eps = 1e-6;
  std::vector<int64_t> mrope_section = {24, 20, 20};
  int64_t max_positions = 262144;
  bool tied = false;

  bool is_moe() const { return type == "qwen3_moe"; }
  /// Whether the feed-forward part of a layer is one of experts.
  bool has_experts(int64_t layer) const {
    if (!is_moe() || (layer + 1) % expert_step != 0) return false;
    for (const int64_t dense : dense_layers)
      if (dense == layer) return false;
    return true;
  }
  int64_t num_expert_layers() const {
    int64_t count = 0;
    for (int64_t layer = 0; layer < layers; ++layer) count += has_experts(layer);
    return count;
  }

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("type", self.type, "decoder", one_of({"qwen3_dense", "qwen3_moe"}));
    v("layers", self.layers, "decoder layers", size_from(0));
    v("hidden", self.hidden, "width", size_from(0));
    v("ffn", self.ffn, "feed-forward width", size_from(0));
    v("heads", self.heads, "query heads", size_from(0));
    v("kv_heads", self.kv_heads, "key/value heads", size_from(0));
    v("head_dim", self.head_dim, "width of a head", between(1, 1 << 14));
    v("vocab", self.vocab, "vocabulary rows", between(1, 1 << 24));
    v("rope_theta", self.rope_theta, "rotary base", at_least(1));
    v("norm_eps", self.norm_eps, "epsilon of RMSNorm", at_least(0));
    v("mrope_section", self.mrope_section, "rotary frequencies of the temporal, height and width positions");
    v("max_positions", self.max_positions, "longest sequence the model declares, tokens", at_least(1));
    v("tied", self.tied, "output head shares the embedding");
    v("experts", self.experts, "qwen3_moe: experts of a layer", size_from(0));
    v("experts_per_token", self.experts_per_token, "qwen3_moe: experts that a token is sent to", size_from(0));
    v("expert_ffn", self.expert_ffn, "qwen3_moe: feed-forward width of an expert", size_from(0));
    v("expert_step", self.expert_step, "qwen3_moe: every k-th layer has experts, the others are dense", size_from(1));
    v("dense_layers", self.dense_layers, "qwen3_moe: layers that are dense all the same");
    v("norm_topk", self.norm_topk, "qwen3_moe: shares of the chosen experts are scaled to sum to 1");
    v("aux_loss", self.aux_loss, "qwen3_moe: coefficient of the load-balancing loss; 0: none", at_least(0));
  }
};

struct ModelConfig {
  std::string path, tokenizer, family = "auto", dtype = "auto", experts_on_disk = "auto";
  TowerConfig tower;
  ConnectorConfig connector;
  DecoderConfig decoder;
  std::vector<int64_t> taps;
  double init_std = 0.02, embed_init_std = 0, residual_init_std = 0;
  int64_t image_token = 151655, video_token = 151656, vision_start_token = 151652, vision_end_token = 151653;

  /// What `auto` stands for.
  std::string known_family() const {
    if (family != "auto") return family;
    if (decoder.is_moe()) return tower.type == "none" ? "qwen3_moe" : "qwen3_vl_moe";
    return tower.type == "none" ? "qwen3" : "qwen3_vl";
  }

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("path", self.path, "Hugging Face model folder to start from; empty: random weights of the shape given here");
    v("tokenizer", self.tokenizer, "folder with the tokenizer files; empty: model.path");
    v("family",
      self.family,
      "architecture family; auto: qwen3_vl, or qwen3 (text only) without a tower, with _moe where the decoder has "
      "experts",
      one_of({"auto", "qwen3_vl", "qwen3", "qwen3_vl_moe", "qwen3_moe"}));
    v("experts_on_disk",
      self.experts_on_disk,
      "how an export writes experts; auto: as model.path has them, else as transformers 5 writes them "
      "(fused_in_out, as Qwen3-VL-MoE is published, gate_up_proj [E, H, 2I]; fused_out_in its transpose; separate: a "
      "tensor per expert and matrix)",
      one_of({"auto", kExpertLayouts[0], kExpertLayouts[1], kExpertLayouts[2]}));
    v("dtype",
      self.dtype,
      "dtype of weights and activations; auto: bfloat16 on GPUs that have it, float32 elsewhere",
      one_of({"auto", "float32", "bfloat16"}));
    v("tower", self.tower, "vision tower");
    v("connector", self.connector, "connector");
    v("decoder", self.decoder, "language model");
    v("taps", self.taps, "DeepStack: tower blocks whose output feeds decoder layers 0, 1, ...");
    v("init_std", self.init_std, "standard deviation of random weights", at_least(0));
    v("embed_init_std",
      self.embed_init_std,
      "the same of token embeddings alone; 0: init_std. With random weights of 0.02 every token looks alike to the "
      "routers of deep experts; 1 keeps them apart",
      at_least(0));
    v("residual_init_std",
      self.residual_init_std,
      "the same of the products that are added to the stream of a block (attention output, MLP down); 0: init_std. "
      "Megatron-LM takes init_std / sqrt(2 layers)",
      at_least(0));
    v("image_token", self.image_token, "token id that images are written over", at_least(0));
    v("video_token", self.video_token, "token id that video frames are written over", at_least(0));
    v("vision_start_token", self.vision_start_token, "token id before a picture", at_least(0));
    v("vision_end_token", self.vision_end_token, "token id after a picture", at_least(0));
  }
};

struct DatasetConfig {
  std::string path, kind = "auto", image_root, encoding = "utf8", prompt;

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("path", self.path, "CSV (id,path,question,a,b,c,d[,answer]), chat JSONL, or packed HDF5 file");
    v("kind", self.kind, "format; auto: by extension", one_of({"auto", "vqa_csv", "chat_jsonl", "packed"}));
    v("image_root", self.image_root, "folder that picture paths are relative to; empty: the folder of `path`");
    v("encoding", self.encoding, "text encoding of the file", one_of({"utf8", "cp949"}));
    v("prompt",
      self.prompt,
      "question text of a CSV row; {question} {a} {b} {c} {d} are filled in; empty: the built-in one");
  }
};

struct DataConfig {
  std::map<std::string, DatasetConfig> sets;
  std::string cache = ".cache/packs", on_bad_sample = "skip", store_images = "encoded", chat_template;
  double max_bad_share = 0.05;
  int64_t max_image_pixels = 64 << 20, min_pixels = 0, max_pixels = 0;
  int64_t pack_window = 4096, reader_threads = 1, prefetch_steps = 2;

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("sets", self.sets, "named datasets");
    v("cache", self.cache, "folder of packed HDF5 files, keyed by content");
    v("on_bad_sample",
      self.on_bad_sample,
      "what a wrong sample does: it is counted and listed, or it ends the run",
      one_of({"skip", "fail"}));
    v("max_bad_share",
      self.max_bad_share,
      "share of skipped samples beyond which the run ends all the same",
      between(0, 1));
    v("store_images",
      self.store_images,
      "pictures in the packed file: as they came, or resized raw bytes",
      one_of({"encoded", "resized"}));
    v("chat_template", self.chat_template, "name of a built-in chat template, when the folder's own is unknown");
    v("max_image_pixels", self.max_image_pixels, "largest picture that is decoded, width x height", at_least(1));
    v("min_pixels",
      self.min_pixels,
      "smallest picture after resizing, pixels; 0: as the model folder says",
      at_least(0));
    v("max_pixels",
      self.max_pixels,
      "largest picture after resizing, pixels; 0: as the model folder says",
      at_least(0));
    v("pack_window", self.pack_window, "samples among which rows are packed", at_least(1));
    v("reader_threads",
      self.reader_threads,
      "threads that prepare pictures; never changes what a step sees",
      between(1, 64));
    v("prefetch_steps", self.prefetch_steps, "optimizer steps prepared ahead", between(1, 64));
  }
};

struct ParallelConfig {
  int64_t tp = 1, pp = 1, cp = 1, ep = 1, etp = 1, dp = 0, chunks = 0, pp_room = 0;
  std::string schedule = "1f1b";
  std::vector<double> pp_layers;
  /// No key: set where layers are balanced. Of each piece of the pipeline forward, input and weight gradients.
  std::vector<double> piece_costs;
  bool sequence = true, overlap = true;
  std::string context = "auto";

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("tp", self.tp, "tensor parallel ranks", between(1, 1 << 14));
    v("pp", self.pp, "pipeline stages", between(1, 1 << 14));
    v("schedule",
      self.schedule,
      "order of forwards and backwards over the pipeline: 1f1b; interleaved: several chunks of layers a rank, less "
      "waiting, more messages; zb-h1: weight gradients fill the gaps; zb-v: the same with two chunks folded as a V",
      one_of({"1f1b", "interleaved", "zb-h1", "zb-v"}));
    v("chunks", self.chunks, "chunks of layers a pipeline rank; 0: two where the schedule has them", between(0, 64));
    v("pp_room",
      self.pp_room,
      "memory for less waiting. 1f1b: micro-batches that a rank runs ahead beyond those that the ranks after it work "
      "on, at most pp - 1, so that a slow pass or message holds up nobody; pp / 2 of them are about all that help. "
      "zb-v: chunks of micro-batches, each half of a rank's layers, beyond the 2 x pp that 1f1b's memory has room for; "
      "2 x pp of them are about all that help",
      between(0, 1 << 14));
    v("pp_layers",
      self.pp_layers,
      "decoder layers of each piece of the pipeline (pp x chunks), first to last; a half ends between the attention of "
      "a layer and its MLP; empty: balanced by cost");
    v("cp", self.cp, "context parallel ranks", between(1, 1 << 14));
    v("ep", self.ep, "expert parallel ranks: experts are cut over so many of dp x cp x tp", between(1, 1 << 14));
    v("etp", self.etp, "tensor parallel ranks inside an expert", between(1, 1 << 14));
    v("dp", self.dp, "data parallel ranks; 0: what is left of -np", between(0, 1 << 20));
    v("sequence", self.sequence, "cut activations along the sequence between tensor parallel layers");
    v("overlap",
      self.overlap,
      "data parallel ranks sum gradients during the backward and hand out new weights under the next forward, and "
      "weight gradients of experts are made while rows travel between ranks; false: one after the other, with the same "
      "result");
    v("context",
      self.context,
      "how attention meets the rows of other cp ranks: gather all keys, pass them around a ring, or exchange heads",
      one_of({"auto", "gather", "ring", "heads"}));
  }
};

struct ParamGroupConfig {
  std::string match = "**";
  double lr_scale = 1, weight_decay = -1;

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("match", self.match, "glob over parameter names");
    v("lr_scale", self.lr_scale, "multiplies the learning rate", at_least(0));
    v("weight_decay", self.weight_decay, "replaces optimizer.weight_decay; -1: keeps it", at_least(-1));
  }
};

struct OptimizerConfig {
  double lr = 1e-4, min_lr_ratio = 0.1, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1, clip_norm = 1;
  std::string schedule = "cosine", grad_dtype = "float32", reduce_dtype = "auto";
  int64_t warmup_steps = 0;
  double warmup_tokens = 0, warmup_share = 0, decay_share = 0.2;
  std::vector<std::string> no_decay = {"**.bias", "**norm*.weight"};
  std::vector<ParamGroupConfig> groups;
  int64_t max_bad_steps = 10;

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("lr", self.lr, "peak learning rate", at_least(0));
    v("min_lr_ratio", self.min_lr_ratio, "final rate as a share of the peak", between(0, 1));
    v("schedule", self.schedule, "rate over the stage", one_of({"cosine", "linear", "wsd", "constant"}));
    v("warmup_steps", self.warmup_steps, "steps of linear warm-up", between(0, kMaxSteps));
    v("warmup_tokens", self.warmup_tokens, "warm-up in tokens instead of steps", between(0, kMaxTokens));
    v("warmup_share", self.warmup_share, "warm-up as a share of the stage instead of steps", between(0, 1));
    v("decay_share", self.decay_share, "wsd: share of the stage in which the rate decays", between(0, 1));
    v("beta1", self.beta1, "AdamW beta1", between(0, 1));
    v("beta2", self.beta2, "AdamW beta2", between(0, 1));
    v("eps", self.eps, "AdamW epsilon", at_least(0));
    v("weight_decay", self.weight_decay, "decoupled weight decay", at_least(0));
    v("no_decay", self.no_decay, "globs of parameters that are not decayed");
    v("groups", self.groups, "rates and decay by glob; first match wins");
    v("clip_norm", self.clip_norm, "largest global gradient norm; 0: no clipping", at_least(0));
    v("grad_dtype", self.grad_dtype, "accumulation of gradients over micro-batches", one_of({"float32", "bfloat16"}));
    v("reduce_dtype",
      self.reduce_dtype,
      "what gradients travel and are summed over ranks in; auto: grad_dtype",
      one_of({"auto", "float32", "bfloat16"}));
    v("max_bad_steps",
      self.max_bad_steps,
      "non-finite steps in a row that are skipped before the run ends",
      at_least(0));
  }
};

struct StageConfig {
  std::string name = "train", objective = "next_token", weight = "sqrt", sample = "sample", recompute = "none",
              attention = "auto";
  std::vector<std::string> trainable = {"**"};
  std::map<std::string, double> mixture;
  int64_t seq_len = 2048, rows_per_step = 8, rows_per_micro_batch = 1, steps = 0, recompute_every = 1;
  double tokens = 0, epochs = 0;
  bool offload = false;
  OptimizerConfig optimizer;
  ParallelConfig parallel;

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("name", self.name, "name of the stage, unique in the run");
    v("objective", self.objective, "what is minimised", one_of({"next_token"}));
    v("trainable", self.trainable, "globs of parameters that train; the others are frozen");
    v("mixture",
      self.mixture,
      "share of samples by dataset; empty: every dataset but eval.set, by size",
      between(0, 1e12));
    v("seq_len", self.seq_len, "tokens of a packed row", between(2, 1 << 24));
    v("rows_per_step", self.rows_per_step, "packed rows of one optimizer step, over all ranks", size_from(1));
    v("rows_per_micro_batch",
      self.rows_per_micro_batch,
      "packed rows of one forward and backward on a rank",
      size_from(1));
    v("steps", self.steps, "optimizer steps; one of steps, tokens, epochs", between(0, kMaxSteps));
    v("tokens", self.tokens, "token budget", between(0, kMaxTokens));
    v("epochs", self.epochs, "passes over the mixture", between(0, kMaxEpochs));
    v("weight",
      self.weight,
      "weight of a label token in a sample of n: 1, 1/sqrt(n) or 1/n",
      one_of({"token", "sqrt", "sample"}));
    v("sample", self.sample, "what n counts over", one_of({"sample", "turn"}));
    v("recompute",
      self.recompute,
      "what layers run again in the backward: nothing; selective: what is cheap (norms, rotations, SwiGLU and GELU, "
      "gathers), for results of matrix products and attention are kept; all_but_attention: attention is kept, which "
      "grows with the square of a sample, for rows of 32K and more; full: all but their input",
      one_of({"none", "selective", "all_but_attention", "full"}));
    v("attention",
      self.attention,
      "kernels of attention on a GPU; auto: the fastest that it has",
      one_of({"auto", "cudnn", "flash", "efficient", "plain"}));
    v("recompute_every", self.recompute_every, "recompute layers 0, k, 2k, ... of tower and decoder", at_least(1));
    v("offload",
      self.offload,
      "what recomputed layers keep goes to pinned host memory until their backward; the last resort: slow where the "
      "link to the host is");
    v("optimizer", self.optimizer, "replaces keys of the top-level optimizer");
    v("parallel", self.parallel, "replaces keys of the top-level parallel");
  }
};

struct SaveConfig {
  std::string export_from = "best", export_dtype = "auto";
  int64_t every = 100, keep = 2;
  bool best = true, background = true, at_end = true, export_model = true;

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("every", self.every, "steps between checkpoints; 0: only at the end of a stage", at_least(0));
    v("keep", self.keep, "newest checkpoints kept, beside the best one", at_least(1));
    v("best", self.best, "keep the checkpoint with the best eval.metric");
    v("background",
      self.background,
      "write from a copy in the host's memory while training goes on; false: training waits, and there is no copy");
    v("at_end", self.at_end, "save where a stage ends; false: for measurements, with one stage and no export");
    v("export_model", self.export_model, "write a Hugging Face folder at the end of the run");
    v("export",
      self.export_from,
      "checkpoint that the folder, the next stage, `evaluate` and `export` start from: the best of its stage by "
      "eval.metric where that was measured and kept, or the last; training itself resumes from the last",
      one_of({"best", "last"}));
    v("export_dtype",
      self.export_dtype,
      "dtype of the folder's weights; auto: as in the folder of model.path, without one that of training",
      one_of({"auto", "float32", "bfloat16", "float16"}));
  }
};

struct EvalConfig {
  std::string set, metric = "loss", dump, submission, output;
  int64_t every = 0, patience = 0, rows = 0, shuffles = 1;

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("set", self.set, "dataset held out for evaluation");
    v("every", self.every, "steps between evaluations; 0: only at the end of a stage", at_least(0));
    v("metric", self.metric, "what decides the best checkpoint", one_of({"loss", "accuracy"}));
    v("patience", self.patience, "evaluations without improvement before the stage ends; 0: never", at_least(0));
    v("rows", self.rows, "packed rows in one forward; 0: the stage's rows_per_micro_batch", size_from(0));
    v("shuffles", self.shuffles, "orders of the choices that are averaged (1: as given)", between(1, 24));
    v("dump", self.dump, "evaluate: file for one JSON line a sample");
    v("submission", self.submission, "evaluate: file for the CSV id,answer");
    v("output", self.output, "evaluate: file for the summary as JSON");
  }
};

struct LogConfig {
  int64_t every = 1, verbosity = 0, profile_step = 0;
  double stall_timeout_s = 600;

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("every", self.every, "steps between lines when the output is not a terminal", at_least(1));
    v("verbosity", self.verbosity, "1: a line a step from every rank; 2: a line a collective", between(0, 2));
    v("profile_step",
      self.profile_step,
      "step of each stage whose trace is written to the run folder, and of a pipeline a diagram of all ranks in the "
      "step before it, which no profiler disturbs; 0: none",
      at_least(0));
    v("stall_timeout_s", self.stall_timeout_s, "longest wait for another rank, seconds", between(1, kMaxSeconds));
  }
};

struct RunConfig {
  std::string name = "run", out, device = "auto";
  int64_t seed = 1234, threads = 0;
  bool deterministic = false;
  ModelConfig model;
  DataConfig data;
  ParallelConfig parallel;
  OptimizerConfig optimizer;
  std::vector<StageConfig> stages;
  SaveConfig save;
  EvalConfig eval;
  LogConfig log;

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("name", self.name, "name of the run");
    v("out", self.out, "folder of the run; empty: runs/<name>");
    v("seed", self.seed, "seed of weights and data order", at_least(0));
    v("device", self.device, "where to compute", one_of({"auto", "cpu", "cuda"}));
    v("deterministic",
      self.deterministic,
      "on GPUs: the same bits on every run of the same layout, with slower attention (CPUs always give them)");
    v("threads", self.threads, "CPU threads of a rank; 0: cores / ranks on this machine", between(0, 1024));
    v("model", self.model, "the model");
    v("data", self.data, "datasets and how they are read");
    v("parallel", self.parallel, "layout; default of every stage");
    v("optimizer", self.optimizer, "optimizer; default of every stage");
    v("stages", self.stages, "what happens, in order");
    v("save", self.save, "checkpoints");
    v("eval", self.eval, "evaluation");
    v("log", self.log, "what is said");
  }
};

}  // namespace hanok
