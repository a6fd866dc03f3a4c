#include "model/cost.h"

#include <algorithm>
#include <string_view>

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

/// Tables are looked up, not multiplied with; norms and biases are not matrices.
bool is_matmul(const ParamSpec& spec, Part part) {
  return spec.shape.size() == 2 && spec.name.ends_with(".weight") && part != Part::kEmbedding &&
         spec.name.find(".position.") == std::string::npos;
}

double elements(const ParamSpec& spec) {
  double n = 1;
  for (const int64_t size : spec.shape) n *= static_cast<double>(size);
  return n;
}

/// Adds forward FLOPs and the backward that training asks for.
struct Counter {
  Flops flops;
  bool trains_upstream = false;  // something before this part trains: gradients pass through it

  void add(double forward, bool trains) {
    flops.forward += forward;
    flops.backward += trains ? 2 * forward : trains_upstream ? forward : 0;
  }
};

}  // namespace

Flops model_flops(const ModelConfig& config, const ParamTable& params, const Work& work) {
  std::vector<const Param*> ordered;
  for (const Param& param : params) ordered.push_back(&param);
  std::stable_sort(ordered.begin(), ordered.end(), [](const Param* a, const Param* b) {
    return part_of(a->spec.name) < part_of(b->spec.name);
  });
  const double merged = work.patches / static_cast<double>(config.connector.merge * config.connector.merge);
  const double rows[] = {work.patches, merged, 0, work.tokens, work.labels};
  const DecoderConfig& decoder = config.decoder;
  const double width = static_cast<double>(decoder.heads * decoder.head_dim);

  Counter counter;
  const Param* embedding = nullptr;
  for (const Param* param : ordered) {
    const Part part = part_of(param->spec.name);
    if (part == Part::kEmbedding) embedding = param;
    if (is_matmul(param->spec, part))
      counter.add(2 * elements(param->spec) * rows[static_cast<int>(part)], param->trainable);
    counter.trains_upstream |= param->trainable;
    // The attention core follows its q, k, v projection; its operands are activations, so it never costs a weight's
    // share.
    if (param->spec.name.find(".attn.qkv.weight") == std::string::npos) continue;
    const double core = part == Part::kTower ? 4 * work.patch_pairs * static_cast<double>(config.tower.hidden)
                                             : 2 * work.token_pairs * width;
    counter.add(core, counter.trains_upstream);
  }
  if (decoder.tied && embedding) counter.add(2 * elements(embedding->spec) * work.labels, embedding->trainable);
  return counter.flops;
}

}  // namespace hanok
