#include "launch/estimate_time.h"

#include <algorithm>

#include "model/balance.h"
#include "parallel/pipeline_schedule.h"
#include "trainer/configured_dtype.h"
#include "trainer/optimizer.h"

namespace hanok {
namespace {

/// One kind of work on one piece, of one micro-batch on one rank.
struct PieceParts {
  PassCosts matrices, attention, memory, tensor_parallel, context_parallel, expert_parallel, offload;
  PassCosts sum() const {
    PassCosts all;
    for (const PassCosts* part :
         {&matrices, &attention, &memory, &tensor_parallel, &context_parallel, &expert_parallel, &offload})
      all += *part;
    return all;
  }
};

double at_length(double rate, double half, double length) {
  constexpr double kMeasured = 8192;
  return rate * 1e12 * (kMeasured + half) / kMeasured * length / (length + half);
}

class Timer {
 public:
  Timer(const TimedStage& timed, const GpuConfig& gpu, std::vector<PieceRange> pieces)
      : t_(timed),
        gpu_(gpu),
        mesh_(timed.groups.mesh.shape()),
        pieces_(std::move(pieces)),
        parts_(pieces_.size()),
        stage_ranks_(mesh_.dp * mesh_.cp * mesh_.tp),
        held_{timed.held.shard / timed.shape.ranks,
              timed.held.expert_shard / timed.shape.ranks,
              timed.held.trained / timed.shape.ranks},
        micro_batches_(static_cast<double>(timed.micro_batches)),
        size_(static_cast<double>(c10::elementSize(timed.dtype))) {
    const auto rate =
        gpu.matmul_tf.find(configured_name(timed.dtype));  // an emulated dtype runs at the rate of float32
    matmul_ = (rate == gpu.matmul_tf.end() ? gpu.matmul_tf.at("float32") : rate->second) * 1e12;
    const Recompute recompute = recompute_of(timed.stage);
    const double again = recompute.every > 0 ? 1.0 / static_cast<double>(recompute.every) : 0;
    (recompute.keep == Keep::kResults ? gathers_again_ : all_again_) = again;
    const bool attention_is_kept = recompute.keep == Keep::kAttention && timed.kernels.context != ContextWay::kHeads;
    context_again_ = attention_is_kept ? 0 : all_again_;
  }

  /// Of a micro-batch, piece by piece.
  std::vector<PassCosts> time_pieces() {
    products();
    passes_over_memory();
    tensor_parallel();
    context_parallel();
    expert_parallel();
    offload();
    std::vector<PassCosts> sums;
    for (const PieceParts& part : parts_) sums.push_back(part.sum());
    return sums;
  }

  Estimate::Seconds run(bool stages_wait) {
    const std::vector<PassCosts> sums = time_pieces();
    const double passing =
        pieces_.size() == 1 ? 0 : stream_bytes() / bus(stage_ranks_, 2) + gpu_.link.latency_us * 1e-6;
    const double span = stages_wait ? pipeline_span(t_.shape, static_cast<int>(t_.micro_batches), sums, passing) : 0;
    Estimate::Seconds s = busiest(span);
    optimizer(s);
    data_parallel(s, sums);
    return s;
  }

 private:
  /// Bytes a second of a group of `size` ranks, one in every `stride`: inside a host, or over the adapters of those of
  /// its members that share one.
  double bus(int stride, int size) const {
    const auto host = static_cast<int>(gpu_.link.gpus);
    if (stride * size <= host) return gpu_.link.bus_gb_s * 1e9;
    const double on_host = std::max(1, host / std::max(1, stride));
    return std::min(gpu_.link.bus_gb_s, gpu_.link.network_gb_s * on_host) * 1e9;
  }

  /// Seconds of an all-to-all in which each rank sends `bytes`, its own share included: what leaves the host goes
  /// through the rank's own adapter.
  double exchange(double bytes, int stride, int size) const {
    const auto host = static_cast<int>(gpu_.link.gpus);
    const double here = std::clamp(host / std::max(1, stride), 1, size), all = size;
    return bytes * ((here - 1) / all / gpu_.link.bus_gb_s + (all - here) / all / gpu_.link.network_gb_s) / 1e9 +
           gpu_.link.latency_us * 1e-6;
  }

  double matmul_rate(const Product& product) const {
    const ParamSpec& spec = *product.weight;
    const bool expert = spec.shape.size() == 3;
    double rows = product.rows / (static_cast<double>(mesh_.dp * mesh_.cp) * micro_batches_);
    double out = static_cast<double>(spec.shape[expert ? 1 : 0]), in = static_cast<double>(spec.shape.back());
    if (expert)  // those of all ranks that send here
      rows = product.rows / (static_cast<double>(stage_ranks_) / (mesh_.ep * mesh_.etp) * micro_batches_);
    else if (spec.cut_dim >= 0)
      (spec.cut_dim == 0 ? out : in) /= mesh_.tp;
    constexpr double kMeasured = 8192;
    const double h = gpu_.matmul_half;
    return matmul_ * (1 + 3 * h / kMeasured) / (1 + h * (1 / std::max(1.0, rows) + 1 / out + 1 / in));
  }

  void products() {
    const Work& work = t_.load.work;
    const bool flash = t_.kernels.on_gpu && mesh_.cp > 1 && t_.kernels.context != ContextWay::kHeads;
    const GpuAttention& text = flash && gpu_.flash_tf.forward > 0 ? gpu_.flash_tf : gpu_.attention_tf;
    for (const Product& product : t_.products) {
      const double share = 1 / (stage_ranks_ * micro_batches_);
      const Flops& f = product.flops;
      PieceParts& parts = parts_[piece_of(product, pieces_)];
      if (product.weight) {
        const PassCosts passes = pass_flops(product);
        const double rate = matmul_rate(product);
        parts.matrices.forward += passes.forward * share / rate;
        parts.matrices.backward_input += passes.backward_input * share / rate;
        parts.matrices.backward_weight += passes.backward_weight * share / (rate * gpu_.matmul_weight_gradient);
        continue;
      }
      const bool tower = product.part == Product::Part::kTowerAttention;
      const double length =
          tower ? work.patch_pairs / std::max(1.0, work.patches) : work.token_pairs / std::max(1.0, work.tokens);
      const GpuAttention& kernel = tower ? gpu_.attention_tf : text;
      // Narrow heads leave the units partly idle.
      const auto width = static_cast<double>(tower ? t_.config.model.tower.hidden / t_.config.model.tower.heads
                                                   : t_.config.model.decoder.head_dim);
      const double narrow = std::min(1.0, width / 128);
      const double forward = narrow * at_length(kernel.forward, kernel.forward_half, std::max(1.0, length));
      const double backward = narrow * at_length(kernel.backward, kernel.backward_half, std::max(1.0, length));
      const Recompute recompute = recompute_of(t_.stage);
      const bool redone = recompute.keep != Keep::kInput && recompute.applies_to(product.layer) &&
                          !keeps_attention(t_.kernels, tower ? 1 : mesh_.cp);
      parts.attention.forward += f.forward * share / forward;
      // Rates of backwards are those of what kernels do: they make the scores once more, five products for a forward's
      // two.
      constexpr double kMade = 5.0 / 4;  // of the four that model FLOPs count
      parts.attention.backward_input +=
          kMade * f.backward * share / backward + (f.again + (redone ? f.forward : 0)) * share / forward;
    }
  }

  /// Norms, rotations, activations: the forward reads and writes what it keeps, the backward reads it and the gradient
  /// of the result and writes that of the input; what runs again is read and written once more.
  void passes_over_memory() {
    const double copy = gpu_.copy_gb_s * 1e9;
    const auto add = [&](PieceParts& parts, double bytes, double redone) {
      parts.memory.forward += 2 * bytes / copy;
      parts.memory.backward_input += (3 * bytes + 2 * std::max(0.0, redone)) / copy;
    };
    const ActivationBytes &all = t_.without, &kept = t_.kept;
    add(parts_.front(), all.tower + all.connector, all.tower - kept.tower);
    add(parts_.back(), all.head, 0);
    for (const PieceRange& range : pieces_) {
      const double own = all.decoder * all.decoder_share(range.first, range.last);
      add(parts_[range.piece], own, own - kept.decoder * kept.decoder_share(range.first, range.last));
    }
  }

  double stream_bytes() const {
    const double rows = static_cast<double>(t_.load.batch.tokens);
    return rows * static_cast<double>(t_.config.model.decoder.hidden) * size_ /
           (t_.groups.sequence_parallel ? mesh_.tp : 1);
  }

  /// Two gathers and two scatters of the stream a block and pass, half of them in each sublayer (facts: 8 L T D (t - 1)
  /// / t a micro-batch). A recomputed block gathers twice more, and all but its last sum where it keeps none.
  void tensor_parallel() {
    const double t = mesh_.tp;
    if (mesh_.tp == 1) return;
    const double latency = gpu_.link.latency_us * 1e-6, share = (t - 1) / t / bus(1, mesh_.tp);
    const auto once = [&](double rows, double width) { return rows * width * size_ * share + latency; };
    const double again = 2 * gathers_again_ + 3 * all_again_;
    const double text =
        once(static_cast<double>(t_.load.batch.tokens), static_cast<double>(t_.config.model.decoder.hidden));
    for (const PieceRange& range : pieces_) {
      PieceParts& parts = parts_[range.piece];
      parts.tensor_parallel.forward += 4 * range.layers() * text;
      parts.tensor_parallel.backward_input += (4 + again) * range.layers() * text;
    }
    if (t_.load.batch.patches == 0) return;
    const TowerConfig& tower = t_.config.model.tower;
    const double picture = once(static_cast<double>(t_.load.batch.patches), static_cast<double>(tower.hidden));
    parts_.front().tensor_parallel.forward += 4 * picture * static_cast<double>(tower.depth);
    parts_.front().tensor_parallel.backward_input += (4 + again) * picture * static_cast<double>(tower.depth);
  }

  /// Gathered: keys and values in both passes, their gradients summed in the backward. Ring: the same hop by hop beside
  /// the attention, the gradients in f32. By heads: all of q, k, v there and the result back, in both passes.
  void context_parallel() {
    const double n = mesh_.cp;
    if (mesh_.cp == 1) return;
    const DecoderConfig& d = t_.config.model.decoder;
    const double rate = bus(mesh_.tp, mesh_.cp), latency = gpu_.link.latency_us * 1e-6;
    const double rows = static_cast<double>(t_.load.batch.tokens * d.head_dim) / mesh_.tp;
    const double kv = 2 * rows * static_cast<double>(d.kv_heads), q = rows * static_cast<double>(d.heads);
    double forward = 0, backward = 0;
    switch (t_.kernels.context) {
      case ContextWay::kHeads:
        forward = exchange((q + kv) * size_, mesh_.tp, mesh_.cp) + exchange(q * size_, mesh_.tp, mesh_.cp);
        backward = forward;
        break;
      case ContextWay::kRing:
        forward = kv * (n - 1) * size_ / rate + (n - 1) * latency;
        backward = kv * ((n - 1) * size_ + n * 4) / rate + (2 * n - 1) * latency;
        break;
      default: forward = kv * (n - 1) * size_ / rate + latency; backward = 2 * forward;
    }
    const bool hidden = t_.kernels.context == ContextWay::kRing;
    for (const PieceRange& range : pieces_) {
      const auto layers = static_cast<double>(range.attentions().size());
      PieceParts& parts = parts_[range.piece];
      const double beside_forward = hidden ? parts.attention.forward : 0,
                   beside_backward = hidden ? parts.attention.backward_input : 0;
      parts.context_parallel.forward += std::max(layers * forward - beside_forward, layers * latency);
      parts.context_parallel.backward_input +=
          std::max(layers * (backward + context_again_ * forward) - beside_backward, layers * latency);
    }
  }

  /// Rows go to the ranks of their experts and come back, in both passes.
  void expert_parallel() {
    const DecoderConfig& d = t_.config.model.decoder;
    if (mesh_.ep == 1 || !d.is_moe()) return;
    const double sent = static_cast<double>(t_.load.batch.tokens) * ranks_of_token(d, mesh_.ep) / mesh_.tp;
    const double once = exchange(sent * static_cast<double>(d.hidden) * size_, mesh_.etp, mesh_.ep);
    for (const PieceRange& range : pieces_) {
      const auto [first, last] = range.mlps();
      for (int64_t layer = first; layer < last; ++layer) {
        if (!d.has_experts(layer)) continue;
        parts_[range.piece].expert_parallel.forward += 2 * once;
        parts_[range.piece].expert_parallel.backward_input += 2 * (1 + all_again_) * once;
      }
    }
  }

  /// What does not fit under the computation of the same pass.
  void offload() {
    if (t_.kept.on_host == 0) return;
    const double each =
        t_.kept.on_host / (gpu_.link.host_gb_s * 1e9) / static_cast<double>(t_.config.model.decoder.layers);
    for (const PieceRange& range : pieces_) {
      PieceParts& parts = parts_[range.piece];
      const PassCosts busy = parts.sum();
      const double moved = each * range.layers();
      parts.offload.forward = std::max(0.0, moved - busy.forward);
      parts.offload.backward_input = std::max(0.0, moved - busy.backward_input - busy.backward_weight);
    }
  }

  /// The parts of the rank that works longest; what the pipeline takes beyond is waiting.
  Estimate::Seconds busiest(double span) const {
    Estimate::Seconds worst;
    for (int rank = 0; rank < t_.shape.ranks; ++rank) {
      Estimate::Seconds s;
      for (int chunk = 0; chunk < t_.shape.chunks; ++chunk) {
        const PieceParts& parts = parts_[hanok::piece_of(t_.shape, {rank, chunk})];
        s.matrices += micro_batches_ * parts.matrices.all();
        s.attention += micro_batches_ * parts.attention.all();
        s.memory += micro_batches_ * parts.memory.all();
        s.tensor_parallel += micro_batches_ * parts.tensor_parallel.all();
        s.context_parallel += micro_batches_ * parts.context_parallel.all();
        s.expert_parallel += micro_batches_ * parts.expert_parallel.all();
        s.offload += micro_batches_ * parts.offload.all();
      }
      if (s.total() > worst.total() || rank == 0) worst = s;
    }
    worst.pipeline = std::max(0.0, span - worst.total());
    return worst;
  }

  /// Master and moments read and written, the gradient read for the norm and for the update, the weight written; sums
  /// of gradients of the weights' own dtype are zeroed before the step, others begin with the first backward.
  void optimizer(Estimate::Seconds& s) const {
    const at::ScalarType type = gradient_options(t_.stage).accumulate;
    const auto accumulate = static_cast<double>(c10::elementSize(type));
    const double zeroed = type == t_.dtype ? held_.trained * accumulate : 0;
    s.optimizer =
        ((held_.shard + held_.expert_shard) * (24 + 2 * accumulate + size_) + zeroed) / (gpu_.copy_gb_s * 1e9);
  }

  /// Sums of gradients run under the backward of the last micro-batch, weights come under the forward of the first; the
  /// end of the one and the beginning of the other stay.
  void data_parallel(Estimate::Seconds& s, const std::vector<PassCosts>& sums) const {
    const GradSyncOptions gradients = gradient_options(t_.stage);
    const auto travelling = static_cast<double>(c10::elementSize(gradients.reduce.value_or(gradients.accumulate)));
    const int n = mesh_.dp * mesh_.cp, m = stage_ranks_ / (mesh_.ep * mesh_.etp);
    const auto once = [](double shard, int ranks, double rate) { return ranks > 1 ? shard * (ranks - 1) / rate : 0; };
    const double elements =
        once(held_.shard, n, bus(mesh_.tp, n)) + once(held_.expert_shard, m, bus(mesh_.ep * mesh_.etp, m));
    const double sum = elements * travelling, spread = elements * size_;
    s.gradients_travel = sum;
    s.weights_travel = spread;
    if (!t_.stage.parallel.overlap) {
      s.data_parallel = sum + spread;
      return;
    }
    double forward = 0, backward = 0;
    for (const PassCosts& piece : sums) {
      forward += piece.forward / t_.shape.ranks;
      backward += (piece.backward_input + piece.backward_weight) / t_.shape.ranks;
    }
    constexpr double kEnd = 0.05;  // of what travels: the buckets of the first layers, which are ready last
    s.data_parallel = std::max(kEnd * sum, sum - backward) + std::max(kEnd * spread, spread - forward);
  }

  const TimedStage& t_;
  const GpuConfig& gpu_;
  const MeshShape mesh_;
  std::vector<PieceRange> pieces_;
  std::vector<PieceParts> parts_;
  int stage_ranks_;
  HeldElements held_;  // where layers are spread over stages
  double micro_batches_, size_, matmul_ = 0;
  // Share of the layers that run again: what is cheap, or products as well; and what attention sends over cp.
  double gathers_again_ = 0, all_again_ = 0, context_again_ = 0;
};

}  // namespace

namespace {

Estimate::Seconds seconds_where(const TimedStage& timed, const GpuConfig& gpu, bool stages_wait) {
  const int pieces = timed.shape.pieces();
  return Timer(timed, gpu, cut_pieces(timed.config.model, pieces, timed.stage.parallel.pp_layers)).run(stages_wait);
}

}  // namespace

Estimate::Seconds seconds_of(const TimedStage& timed, const GpuConfig& gpu) {
  return seconds_where(timed, gpu, /*stages_wait=*/true);
}

Estimate::Seconds seconds_without_waiting(const TimedStage& timed, const GpuConfig& gpu) {
  return seconds_where(timed, gpu, /*stages_wait=*/false);
}

SublayerCosts sublayer_seconds(const TimedStage& timed, const GpuConfig& gpu) {
  const ModelConfig& model = timed.config.model;
  const int64_t pieces = most_pieces(model);
  std::vector<double> halves(pieces, 0.5);
  halves.front() = halves.back() = 0;
  std::vector<PassCosts> costs = Timer(timed, gpu, cut_pieces(model, static_cast<int>(pieces), halves)).time_pieces();
  return {.sublayers = {costs.begin() + 1, costs.end() - 1}, .before = costs.front(), .after = costs.back()};
}

}  // namespace hanok
