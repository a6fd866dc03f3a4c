#include "model/activations.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>

#include "model/kernels/attention_cudnn.h"
#include "model/kernels/parcels.h"
#include "model/kernels/vocab_softmax.h"
#include "model/layers/token_rows.h"
#include "model/pieces.h"

namespace hanok {
namespace {

/// Sizes of one transformer block as this rank runs it.
struct BlockSizes {
  double cut_rows, rows;      // between layers (sequence layout) and inside them
  double width;               // of the residual stream
  double qkv, heads, turned;  // local columns of q, k, v; query heads; heads that qk_rope normalises
  double query;               // columns of all local query heads
  double up, act;             // columns out of `up` and into `down`
  bool gated, qk_norm;
  bool has_attention = true, has_mlp = true;  // of a block that a pipeline cuts, one of them
};

/// Of the two sublayers of a block.
struct SublayerBytes {
  double attention = 0, mlp = 0;
  double sum() const { return attention + mlp; }
};

struct BlockBytes {
  SublayerBytes kept;
  double gradients = 0, workspace = 0;
  SublayerBytes results;  // kept in place of `kept` where only what is cheap runs again: input and results of products
  double forward = 0;     // alive at once in a forward that keeps nothing
  bool keeps_input = false;
};

class Walk {
 public:
  Walk(const ModelConfig& config,
       const ParamTable& params,
       const Groups& groups,
       const MicroBatch& batch,
       const Recompute& recompute,
       KernelSet kernels)
      : config_(config), groups_(groups), batch_(batch), recompute_(recompute), kernels_(kernels) {
    for (const Param& param : params) params_[param.spec.name] = &param;
    const at::ScalarType dtype = params.front().value.scalar_type();
    size_ = static_cast<double>(c10::elementSize(dtype));
    wide_ = dtype == at::kDouble ? 8 : 4;
  }

  ActivationBytes run() {
    const bool pictures = batch_.patches > 0 && config_.tower.type != "none";
    const bool is_first = params_.contains("tower.patch_embed.weight");
    const double tokens = static_cast<double>(batch_.tokens);
    out_.input = tokens * 4 * 8 + static_cast<double>(batch_.vision_tokens) * 8;
    if (pictures && is_first) {
      out_.input += static_cast<double>(batch_.patches) * patch_values() * 4;
      tower();
      connector();
    }
    decoder(pictures);
    if (params_.contains("decoder.norm.weight")) {
      head();
    } else {
      out_.stream = cut(tokens) * static_cast<double>(config_.decoder.hidden) * size_;
    }
    const double held = out_.input + out_.kept();
    out_.redone_block = std::max(decoder_redone_, tower_redone_);
    out_.block_gradients = std::max(decoder_gradients_, tower_gradients_);
    // When the backward reaches the tower, what decoder and loss kept is gone.
    const double in_loss = held + out_.logits, in_decoder = held + decoder_redone_ + decoder_gradients_,
                 in_tower = out_.input + out_.tower + out_.connector + tower_redone_ + tower_gradients_;
    out_.peak = std::max({held + forward_, in_loss, in_decoder, in_tower});
    return out_;
  }

 private:
  const Param& param(const std::string& name) const { return *params_.at(name); }
  bool trains(const std::string& name) const {
    const auto found = params_.find(name);
    return found != params_.end() && found->second->trainable;
  }
  double rows_of(const std::string& name) const { return static_cast<double>(param(name).value.size(0)); }
  double columns_of(const std::string& name) const { return static_cast<double>(param(name).value.size(1)); }
  double cut(double rows) const {
    return groups_.sequence_parallel ? rows / static_cast<double>(groups_.tp->size()) : rows;
  }
  double patch_values() const {
    const TowerConfig& tower = config_.tower;
    return static_cast<double>(tower.channels * tower.temporal_patch * tower.patch * tower.patch);
  }
  bool block_trains(const std::string& prefix) const {
    return std::any_of(params_.begin(), params_.end(), [&](const auto& entry) {
      return entry.second->trainable && entry.first.starts_with(prefix);
    });
  }

  /// A matrix keeps its input for its own gradient only.
  double linear(const std::string& name, double input_bytes) {
    const bool weight = trains(name + ".weight");
    grad_ |= weight || trains(name + ".bias");
    return weight ? input_bytes : 0;
  }

  /// Keeps x and 1/rms.
  double rms_norm(const std::string& name, double rows, double width, bool& keeps_input) {
    keeps_input = grad_ = grad_ || trains(name + ".weight");
    return grad_ ? rows * width * size_ + rows * wide_ : 0;
  }

  /// Keeps x, mean and 1/std.
  double layer_norm(const std::string& name, double rows, double width, bool& keeps_input) {
    keeps_input = grad_ = grad_ || trains(name + ".weight") || trains(name + ".bias");
    return grad_ ? rows * width * size_ + 2 * rows * wide_ : 0;
  }

  /// Keeps the projection and, with norms, 1/rms of every head that turns.
  double qk_rope(const std::string& attn, const BlockSizes& s) {
    grad_ |= trains(attn + ".q_norm.weight") || trains(attn + ".k_norm.weight");
    return grad_ ? s.rows * s.qkv * size_ + (s.qk_norm ? s.rows * s.turned * wide_ : 0) : 0;
  }

  /// q, k, v (views of one tensor), the result, and the log-sum of every row and head.
  double attention(const BlockSizes& s, BlockBytes& block) const {
    if (!grad_) return 0;
    if (s.gated && groups_.cp->size() > 1) return context_attention(s, block);
    double rows_kept = s.rows;
    double repeated = 0;
    if (kernels_.attention == AttentionStore::kEfficient) {
      rows_kept = std::ceil(s.rows / 32) * 32;  // of the log-sums
      repeated = 2 * s.rows * s.query * size_;
    }
    const double f32_heads = s.rows * s.query * 4;
    switch (kernels_.attention) {
      case AttentionStore::kOwn: break;  // scratch of a thread
      case AttentionStore::kCudnn: block.workspace = cudnn_workspace(s.rows, s.query, s.qkv); break;
      case AttentionStore::kFlash:
        block.workspace = f32_heads + (s.qkv < 3 * s.query ? 2 * s.rows * s.query * size_ : 0);
        break;
      case AttentionStore::kEfficient: block.workspace = f32_heads; break;
    }
    return s.rows * (s.qkv + s.query) * size_ + rows_kept * s.heads * wide_ + repeated;
  }

  /// dq in f32 with the strides of qkv; where query heads share keys and values also dk and dv of every query head in
  /// f32, and in rows of their own. source: workspaces of cuDNN 9 on an H200 (cluster/bench/beside_peers.md)
  double cudnn_workspace(double rows, double query, double qkv) const {
    const double planned = attention_cudnn::planned_rows(static_cast<int64_t>(rows));
    const bool is_shared = qkv < 3 * query;
    return planned * (qkv + (is_shared ? 2 * query : 0)) * 4 + (is_shared ? rows * (qkv - query) * size_ : 0);
  }

  /// As model/layers/context_attention.cpp does it. Gathered and in a ring: the projection (through its queries), a
  /// copy of the keys and values, the result and its log-sums. By heads: all rows of a share of them, and the result
  /// once more as rows.
  double context_attention(const BlockSizes& s, BlockBytes& block) const {
    const double n = groups_.cp->size(), kv = s.qkv - s.query, sums = s.rows * s.heads * wide_;
    if (kernels_.context == ContextWay::kHeads) {
      const double columns = exchanged_columns(s);
      if (kernels_.on_gpu)
        block.workspace = kernels_.attention == AttentionStore::kCudnn
                              ? cudnn_workspace(s.rows * n, s.query / n, columns / n)
                              : s.rows * s.query * 4;
      return s.rows * (columns + 2 * s.query) * size_ + sums;
    }
    const bool ring = kernels_.context == ContextWay::kRing;
    // Gathered: as they come and in order, and their gradients likewise. Ring: the block that is here and the next one,
    // the gradients of both and the share of this rank.
    block.workspace = s.rows * s.query * wide_ +
                      (ring ? s.rows * kv * (2 * size_ + 3 * wide_) : n * s.rows * kv * (2 * size_ + 2 * wide_));
    return s.rows * (s.qkv + kv + s.query) * size_ + sums;
  }

  bool has_experts(const std::string& prefix) const { return params_.contains(prefix + "moe.router.weight"); }

  /// As model/layers/moe.cpp does it: the router's input and shares, the rows of experts, gate and up, their product,
  /// and what they make, each where a gradient needs it; and the orders of rows.
  double experts(const std::string& prefix, const BlockSizes& s) {
    const double own = s.rows / groups_.tp->size(), choices = static_cast<double>(config_.decoder.experts_per_token);
    const double count = static_cast<double>(config_.decoder.experts), row = s.width * size_;
    const double copies = own * choices * groups_.etp->size();  // ranks of etp have the rows of all of them
    double bytes = linear(prefix + "router", own * row);
    if (grad_) bytes += own * count * wide_;
    bytes += linear(prefix + "experts.up", copies * row);
    bytes += activation(s);
    bytes += linear(prefix + "experts.down", s.rows * s.act * size_);
    if (!grad_) return bytes;
    bytes += copies * row;
    if (!over_ranks()) return bytes + own * choices * (size_ + 3 * 8);
    // Weights and the orders of slots as parcels hold them; at home choices, and parcels of tokens.
    bytes += parcels(own) * groups_.etp->size() * choices * (size_ + 2 * 8);
    return bytes + own * (choices + 2 * groups_.ep->size()) * 8;
  }

  bool over_ranks() const { return groups_.ep->size() * groups_.etp->size() > 1; }

  /// That come to a rank; every rank is supposed to get as many.
  double parcels(double own) const { return own * ranks_of_token(config_.decoder, groups_.ep->size()); }

  /// SwiGLU keeps gate and up, GELU its input; the result is kept by the next matrix.
  double activation(const BlockSizes& s) const { return grad_ ? s.rows * s.up * size_ : 0; }

  /// In the order of the forward of model/decoder/block.cpp and of the tower's Block.
  BlockBytes block(const std::string& prefix, const BlockSizes& s) {
    const auto norm = [&](const std::string& name, bool& keeps) {
      return s.gated ? rms_norm(prefix + name, s.cut_rows, s.width, keeps)
                     : layer_norm(prefix + name, s.cut_rows, s.width, keeps);
    };
    BlockBytes out;
    const double stream = s.cut_rows * s.width * size_, gathered = s.rows * s.width * size_;
    if (s.has_attention) {
      double& kept = out.kept.attention;
      kept += norm("attn_norm", out.keeps_input);
      kept += linear(prefix + "attn.qkv", gathered);  // gathered over tp: the norm's result lives on only here
      kept += qk_rope(prefix + "attn", s);
      const bool kept_by_attention = grad_;
      kept += attention(s, out);
      kept += linear(prefix + "attn.out", kept_by_attention ? 0 : s.rows * s.query * size_);
      const double projected = s.rows * s.qkv * size_, query = s.rows * s.query * size_;
      out.forward = stream + gathered + std::max(2 * projected, projected + query + stream);
    }
    if (s.has_mlp) {
      bool keeps_middle = false;
      double& kept = out.kept.mlp;
      kept += norm("mlp_norm", keeps_middle);
      if (has_experts(prefix)) {
        kept += experts(prefix + "moe.", s);
      } else {
        kept += linear(prefix + "mlp.up", gathered);
        kept += activation(s);
        kept += linear(prefix + "mlp.down", s.rows * s.act * size_);
      }
      if (!s.has_attention) out.keeps_input = keeps_middle;
      out.forward = std::max(out.forward, 3 * stream + gathered + s.rows * (s.up + s.act) * size_);
    }
    out.results = {.attention = s.has_attention ? attention_results(s) : 0,
                   .mlp = s.has_mlp ? mlp_results(prefix, s) : 0};
    if (grad_) out.gradients = gradients(prefix, s, stream, gathered, out.kept.mlp, out.workspace);
    return out;
  }

  bool is_by_heads(const BlockSizes& s) const {
    return s.gated && groups_.cp->size() > 1 && kernels_.context == ContextWay::kHeads;
  }

  /// What attention gives, and its log-sums. libtorch's attention runs again.
  double core_results(const BlockSizes& s) const {
    const bool keeps = s.has_attention && keeps_attention(kernels_, s.gated ? groups_.cp->size() : 1);
    return keeps ? s.rows * (s.query * size_ + s.heads * wide_) : 0;
  }

  /// What parallel/kept.h keeps of a block: its input, q k v, attention.
  double attention_results(const BlockSizes& s) const {
    double bytes = s.cut_rows * s.width * size_ + s.rows * s.qkv * size_ + core_results(s);
    if (is_by_heads(s)) bytes += (exchanged_columns(s) + s.query) * s.rows * size_;
    return bytes;
  }

  /// And: its input, or what `out` made of the attention, which gives it; gate and up; of experts the logits of the
  /// router, what came and what they made of it.
  double mlp_results(const std::string& prefix, const BlockSizes& s) const {
    double bytes = s.cut_rows * s.width * size_ + s.rows * s.up * size_;
    if (has_experts(prefix)) {
      const double own = s.rows / groups_.tp->size(), row = s.width * size_;
      const double choices = static_cast<double>(config_.decoder.experts_per_token);
      bytes += own * static_cast<double>(config_.decoder.experts) * size_;
      bytes += own * choices * groups_.etp->size() * row;  // what experts made
      const auto columns = static_cast<double>(parcel_width(config_.decoder.hidden, config_.decoder.experts_per_token));
      if (groups_.ep->size() > 1) bytes += parcels(own) * columns * size_;                 // what came
      if (groups_.ep->size() > 1 && groups_.etp->size() > 1) bytes += parcels(own) * row;  // sums over etp
    }
    return bytes;
  }

  /// Columns of a share of the heads, for all rows over cp: keys and values fewer than the ranks are repeated.
  double exchanged_columns(const BlockSizes& s) const {
    const double kv = s.qkv - s.query, kv_heads = kv / 2 / (s.query / s.heads);
    return s.query + kv * std::max(1.0, groups_.cp->size() / kv_heads);
  }

  /// The most that gradients take beyond what was kept, while the backward passes a block: at `down`, where nothing has
  /// been freed; at the activation, where the input of `down` has; in attention, where the whole MLP has.
  double gradients(const std::string& prefix,
                   const BlockSizes& s,
                   double stream,
                   double gathered,
                   double mlp,
                   double workspace) const {
    const double act = s.rows * s.act * size_, up = s.rows * s.up * size_;
    const bool down_trains = trains(prefix + "mlp.down.weight") || trains(prefix + "moe.experts.down.weight");
    const double at_down = stream + (s.rows > s.cut_rows ? gathered : 0) + act;
    const double at_activation = stream + act + up - (down_trains ? act : 0);
    const double in_attention = stream + s.rows * (s.query + s.qkv) * size_ + workspace - mlp;
    return std::max({at_down, at_activation, in_attention});
  }

  /// A block that may be redone in the backward: then only its input is kept. -> whether that input is kept
  bool layer(const std::string& prefix,
             int64_t index,
             const BlockSizes& s,
             SublayerBytes& kept,
             double& redone,
             double& most) {
    const bool flows_before = grad_;
    const BlockBytes inside = block(prefix, s);
    const double stream = s.cut_rows * s.width * size_;
    most = std::max(most, inside.gradients);
    out_.attention_workspace = std::max(out_.attention_workspace, inside.workspace);
    const bool runs_again = recompute_.applies_to(index) && (flows_before || block_trains(prefix));
    SublayerBytes results = inside.results;
    if (recompute_.keep != Keep::kResults)
      results = s.has_attention ? SublayerBytes{.attention = stream} : SublayerBytes{.mlp = stream};
    if (recompute_.keep == Keep::kAttention) results.attention += core_results(s);
    const double again = results.sum(), all = inside.kept.sum();
    // The last block meets all that the others kept.
    forward_ = std::max(inside.forward - (!runs_again ? all : again - stream), 0.0);
    if (!runs_again) {
      if (!recompute_.applies_to(index)) kept = inside.kept;
      return !recompute_.applies_to(index) && inside.keeps_input;
    }
    double redone_here = std::max(all - (inside.keeps_input ? again : again - stream), 0.0);
    if (recompute_.offload) {
      out_.on_host += again;
      // The last two layers before the loss stay; elsewhere this layer and the one before it come back.
      if (stays_before_loss(prefix, index))
        kept = results;
      else
        redone_here += 2 * again;
    } else {
      kept = results;
    }
    redone = std::max(redone, redone_here);
    return !recompute_.offload;
  }

  /// As model/layers/host_lane.cpp leaves them: of the last stage, the last two that run again.
  bool stays_before_loss(const std::string& prefix, int64_t index) const {
    return prefix.starts_with("decoder.") && params_.contains("decoder.norm.weight") &&
           index + 2 * recompute_.every >= config_.decoder.layers;
  }

  BlockSizes sizes(const std::string& prefix, double rows, double width, int64_t head_dim, bool gated) const {
    BlockSizes s{.cut_rows = cut(rows), .rows = rows, .width = width, .gated = gated, .qk_norm = gated};
    s.has_attention = params_.contains(prefix + "attn_norm.weight");
    s.has_mlp = params_.contains(prefix + "mlp_norm.weight");
    if (s.has_attention) {
      s.qkv = rows_of(prefix + "attn.qkv.weight");
      s.query = columns_of(prefix + "attn.out.weight");
      s.heads = s.query / static_cast<double>(head_dim);
      s.turned = s.heads + (s.qkv - s.query) / 2 / static_cast<double>(head_dim);
    }
    if (!s.has_mlp) return s;
    if (has_experts(prefix)) {
      // Rows are cut over tp and sent once for each expert chosen; every rank is supposed to receive as many.
      const double copies = static_cast<double>(config_.decoder.experts_per_token) / groups_.tp->size();
      s.act = copies * static_cast<double>(config_.decoder.expert_ffn);
      s.up = 2 * s.act;
      return s;
    }
    s.up = rows_of(prefix + "mlp.up.weight");
    s.act = columns_of(prefix + "mlp.down.weight");
    return s;
  }

  void tower() {
    const TowerConfig& tower = config_.tower;
    const int64_t merge = config_.connector.merge * config_.connector.merge;
    padded_patches_ = static_cast<double>(padded_rows(batch_.patches, merge, groups_));
    const double rows = padded_patches_;
    const bool project = trains("tower.patch_embed.weight"), position = trains("tower.position.weight");
    const bool copies = size_ != 4 || rows > static_cast<double>(batch_.patches);  // else the input itself is kept
    if (project && copies) out_.tower += (size_ == 4 ? rows : cut(rows)) * patch_values() * size_;
    if (position) out_.tower += rows * 4 * (8 + wide_);  // four taps a patch: index and share
    grad_ = project || position || trains("tower.patch_embed.bias");
    const double width = static_cast<double>(tower.hidden);
    const int64_t head_dim = tower.hidden / tower.heads;
    bool turns = false;
    for (int64_t i = 0; i < tower.depth; ++i) {
      const std::string prefix = "tower.layers." + std::to_string(i) + ".";
      const BlockSizes s = sizes(prefix, rows, width, head_dim, false);
      SublayerBytes kept;
      tower_inputs_kept_.push_back(layer(prefix, i, s, kept, tower_redone_, tower_gradients_));
      out_.tower += kept.sum();
      turns |= grad_;
    }
    if (turns) out_.tower += rows * static_cast<double>(head_dim) * wide_;  // cos and sin, half a head wide, f32
  }

  /// -> whether what it makes needs a gradient
  bool merger(const std::string& prefix, bool merge_first, bool input_is_kept) {
    const double merge = static_cast<double>(config_.connector.merge * config_.connector.merge);
    const double tokens = padded_patches_ / merge, merged = static_cast<double>(config_.tower.hidden) * merge;
    const double patches = cut(padded_patches_), rows = merge_first ? patches / merge : patches;
    bool keeps_input = false;
    double bytes = layer_norm(prefix + "norm", rows, merge_first ? merged : merged / merge, keeps_input);
    if (keeps_input && input_is_kept) bytes -= patches * merged / merge * size_;
    bytes += linear(prefix + "mlp.up", tokens * merged * size_);
    const double hidden = tokens * rows_of(prefix + "mlp.up.weight") * size_;
    if (grad_) bytes += hidden;  // GELU
    bytes += linear(prefix + "mlp.down", hidden);
    out_.connector += bytes;
    return grad_;
  }

  void connector() {
    const bool tower_flows = grad_;
    const std::string main = "connector.main.";
    main_flows_ = merger(main, false, false);
    const bool keeps_features = tower_flows || trains(main + "norm.weight") || trains(main + "norm.bias");
    for (size_t i = 0; i < config_.taps.size(); ++i) {
      const auto next = static_cast<size_t>(config_.taps[i]) + 1;
      grad_ = tower_flows;
      tap_flows_.push_back(merger("connector.taps." + std::to_string(i) + ".",
                                  true,
                                  next < tower_inputs_kept_.size() ? tower_inputs_kept_[next] : keeps_features));
    }
  }

  void decoder(bool pictures) {
    const DecoderConfig& decoder = config_.decoder;
    const double rows = static_cast<double>(batch_.tokens);
    const bool embeds = trains("decoder.embed.weight");
    grad_ = embeds || (pictures && main_flows_) || batch_.trains_before;
    bool turns = false;
    out_.sublayers.resize(Sublayer::count(decoder.layers));
    for (int64_t i = 0; i < decoder.layers; ++i) {
      const std::string prefix = "decoder.layers." + std::to_string(i) + ".";
      const BlockSizes s = sizes(prefix, rows, static_cast<double>(decoder.hidden), decoder.head_dim, true);
      if (!s.has_attention && !s.has_mlp) continue;  // on another stage of a pipeline
      SublayerBytes kept;
      layer(prefix, i, s, kept, decoder_redone_, decoder_gradients_);
      out_.sublayers[Sublayer::attention(i)] = kept.attention;
      out_.sublayers[Sublayer::mlp(i)] = kept.mlp;
      out_.decoder += kept.sum();
      turns |= grad_ && s.has_attention;
      if (pictures && s.has_mlp && i < static_cast<int64_t>(tap_flows_.size())) grad_ |= tap_flows_[i];
    }
    const double tables = rows * static_cast<double>(decoder.head_dim) * size_;  // cos and sin
    if (turns) out_.decoder += tables;
    forward_ += (turns ? 0 : tables) + (turns ? 0 : rows * static_cast<double>(decoder.hidden) * size_);
    bool keeps_input = false;
    if (!params_.contains("decoder.norm.weight")) return;
    out_.decoder += rms_norm("decoder.norm", cut(rows), static_cast<double>(decoder.hidden), keeps_input);
  }

  void head() {
    const DecoderConfig& decoder = config_.decoder;
    const std::string name = decoder.tied ? "decoder.embed.weight" : "decoder.head.weight";
    const double width = static_cast<double>(decoder.hidden), labels = static_cast<double>(batch_.labels);
    const bool weight_trains = trains(name);
    out_.head = cut(static_cast<double>(batch_.tokens)) * width * size_;  // held by who asked for the loss
    if (grad_) out_.head += labels * (width * size_ + 8);  // gradient of the labelled rows, and which they are
    const double vocab = rows_of(name);
    const auto most = static_cast<double>(
        rows_of_logits(decoder.vocab, groups_.tp->size(), decoder.hidden, weight_trains, kernels_.on_gpu));
    const double chunk = std::min(labels, most) * vocab;
    // On the CPU logits are widened; a GPU's kernels widen what they read. The gradient takes their place, and is
    // narrowed on the CPU, where products of 16 bits are added to a table of their own, too.
    const double narrow = size_ == wide_ ? 0 : size_, logit = kernels_.on_gpu ? size_ : narrow + wide_;
    const double dweight = !kernels_.on_gpu && weight_trains ? vocab * width * narrow : 0;
    const double rows = labels * (width * size_ + 8 + 2 * wide_ + 4);  // and their targets, weights, losses
    out_.logits = rows + chunk * logit + dweight;
  }

  const ModelConfig& config_;
  const Groups& groups_;
  const MicroBatch& batch_;
  const Recompute recompute_;
  const KernelSet kernels_;
  std::unordered_map<std::string, const Param*> params_;
  double size_ = 4, wide_ = 4;  // bytes of an activation, and of what is accumulated
  bool grad_ = false;           // what flows here needs a gradient
  double padded_patches_ = 0;
  std::vector<bool> tower_inputs_kept_, tap_flows_;
  bool main_flows_ = false;
  double forward_ = 0, tower_redone_ = 0, tower_gradients_ = 0, decoder_redone_ = 0, decoder_gradients_ = 0;
  ActivationBytes out_;
};

}  // namespace

double ActivationBytes::decoder_share(int64_t first, int64_t last) const {
  const auto sum = [this](int64_t from, int64_t to) {
    return std::accumulate(sublayers.begin() + from, sublayers.begin() + to, 0.0);
  };
  const auto count = static_cast<int64_t>(sublayers.size());
  const double all = sum(0, count);
  return all > 0 ? sum(first, last) / all : static_cast<double>(last - first) / static_cast<double>(count);
}

ActivationBytes activation_bytes(const ModelConfig& config,
                                 const ParamTable& params,
                                 const Groups& groups,
                                 const MicroBatch& batch,
                                 const Recompute& recompute,
                                 KernelSet kernels) {
  return Walk(config, params, groups, batch, recompute, kernels).run();
}

bool keeps_attention(const KernelSet& kernels, int64_t cp) {
  const bool own = kernels.attention == AttentionStore::kOwn || kernels.attention == AttentionStore::kCudnn;
  return own || (cp > 1 && kernels.context != ContextWay::kHeads);
}

double ranks_of_token(const DecoderConfig& config, int64_t ranks) {
  const auto experts = static_cast<double>(config.experts), elsewhere = experts - experts / static_cast<double>(ranks);
  double none_here = 1;
  for (int64_t k = 0; k < config.experts_per_token; ++k)
    none_here *= std::max(0.0, elsewhere - static_cast<double>(k)) / (experts - static_cast<double>(k));
  return static_cast<double>(ranks) * (1 - none_here);
}

}  // namespace hanok
