#include "model/cost.h"

#include <algorithm>

#include "model/layers/recompute.h"

namespace hanok {
namespace {

/// The parts of the model in the order in which a forward passes them.
enum class Part { kTower, kConnector, kEmbedding, kDecoder, kHead };

Part part_of(const std::string& name) {
  if (name.starts_with("tower.")) return Part::kTower;
  if (name.starts_with("connector.")) return Part::kConnector;
  if (name.starts_with("decoder.embed.")) return Part::kEmbedding;
  if (name.starts_with("decoder.head.")) return Part::kHead;
  return Part::kDecoder;
}

/// Index of the block that a weight belongs to; -1: of none.
int64_t layer_of(const std::string& name) {
  const size_t at = name.find(".layers.");
  if (at == std::string::npos) return -1;
  return std::stoll(name.substr(at + 8));
}

/// Tables are looked up, not multiplied with; norms and biases are not matrices.
bool is_matmul(const ParamSpec& spec, Part part) {
  return spec.shape.size() >= 2 && spec.name.ends_with(".weight") && part != Part::kEmbedding &&
         spec.name.find(".position.") == std::string::npos;
}

/// Share of a weight that one row is multiplied with: of experts, those that its token is sent to.
double share_used(const ParamSpec& spec, const DecoderConfig& decoder) {
  if (spec.shape.size() < 3) return 1;
  return static_cast<double>(decoder.experts_per_token) / static_cast<double>(decoder.experts);
}

double elements(const ParamSpec& spec) {
  double n = 1;
  for (const int64_t size : spec.shape) n *= static_cast<double>(size);
  return n;
}

Flops& linear_of(FlopsByPart& flops, Part part) {
  switch (part) {
    case Part::kTower: return flops.tower;
    case Part::kConnector: return flops.connector;
    case Part::kHead: return flops.head;
    default: return flops.decoder;
  }
}

/// Adds forward FLOPs and the backward that training asks for.
struct Counter {
  int64_t recompute_every = 0;
  bool trains_upstream = false;  // something before this part trains: gradients pass through it

  void add(Flops& to, double forward, bool trains, int64_t layer) const {
    to.forward += forward;
    to.backward += trains ? 2 * forward : trains_upstream ? forward : 0;
    if ((trains || trains_upstream) && layer >= 0 && is_recomputed(layer, recompute_every)) to.again += forward;
  }
};

}  // namespace

Flops& Flops::operator+=(const Flops& other) {
  forward += other.forward;
  backward += other.backward;
  again += other.again;
  return *this;
}

Flops FlopsByPart::sum() const {
  Flops all;
  for (const Flops* part : {&tower, &tower_attention, &connector, &decoder, &attention, &head}) all += *part;
  return all;
}

FlopsByPart flops_by_part(const ModelConfig& config,
                          const ParamTable& params,
                          const Work& work,
                          int64_t recompute_every) {
  std::vector<const Param*> ordered;
  for (const Param& param : params) ordered.push_back(&param);
  std::stable_sort(ordered.begin(), ordered.end(), [](const Param* a, const Param* b) {
    return part_of(a->spec.name) < part_of(b->spec.name);
  });
  const double merged = work.patches / static_cast<double>(config.connector.merge * config.connector.merge);
  const double rows[] = {work.patches, merged, 0, work.tokens, work.labels};
  const DecoderConfig& decoder = config.decoder;
  const double width = static_cast<double>(decoder.heads * decoder.head_dim);

  FlopsByPart flops;
  Counter counter{.recompute_every = recompute_every};
  const Param* embedding = nullptr;
  for (const Param* param : ordered) {
    const Part part = part_of(param->spec.name);
    const int64_t layer = layer_of(param->spec.name);
    if (part == Part::kEmbedding) embedding = param;
    if (is_matmul(param->spec, part))
      counter.add(linear_of(flops, part),
                  2 * elements(param->spec) * share_used(param->spec, decoder) * rows[static_cast<int>(part)],
                  param->trainable,
                  layer);
    counter.trains_upstream |= param->trainable;
    // The attention core follows its q, k, v projection; its operands are activations, so it never costs a weight's
    // share.
    if (param->spec.name.find(".attn.qkv.weight") == std::string::npos) continue;
    const bool tower = part == Part::kTower;
    const double core =
        tower ? 4 * work.patch_pairs * static_cast<double>(config.tower.hidden) : 2 * work.token_pairs * width;
    counter.add(tower ? flops.tower_attention : flops.attention, core, counter.trains_upstream, layer);
  }
  if (decoder.tied && embedding)
    counter.add(flops.head, 2 * elements(embedding->spec) * work.labels, embedding->trainable, -1);
  // The fused loss keeps no logits: its backward multiplies for them again.
  if (flops.head.backward > 0) flops.head.again = flops.head.forward;
  return flops;
}

Flops model_flops(const ModelConfig& config, const ParamTable& params, const Work& work) {
  return flops_by_part(config, params, work).sum();
}

}  // namespace hanok
