#include "model/cost.h"

#include <algorithm>

#include "model/pieces.h"

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

Product::Part linear_of(Part part) {
  switch (part) {
    case Part::kTower: return Product::Part::kTower;
    case Part::kConnector: return Product::Part::kConnector;
    case Part::kHead: return Product::Part::kHead;
    default: return Product::Part::kDecoder;
  }
}

/// Forward FLOPs and the backward that training asks for.
struct Counter {
  Recompute recompute;
  bool trains_upstream = false;  // something before this part trains: gradients pass through it

  /// `kept`: from what on a layer keeps this result, so that it does not run again.
  Flops count(double forward, bool trains, int64_t layer, Keep kept) const {
    const bool runs_again = layer >= 0 && recompute.applies_to(layer) && recompute.keep < kept;
    return {.forward = forward,
            .backward = trains            ? 2 * forward
                        : trains_upstream ? forward
                                          : 0,
            .again = (trains || trains_upstream) && runs_again ? forward : 0};
  }
};

}  // namespace

double picture_share(const ModelConfig& config, const Work& work) {
  if (config.tower.type == "none" || work.tokens <= 0) return 0;
  const auto merge = static_cast<double>(config.connector.merge * config.connector.merge);
  return std::min(1.0, work.patches / merge / work.tokens);
}

void Work::add_frames(int64_t frames, int64_t height, int64_t width) {
  const auto count = static_cast<double>(frames), frame = static_cast<double>(height * width);
  patches += count * frame;
  patch_pairs += count * frame * frame;
}

Work& Work::operator+=(const Work& other) {
  tokens += other.tokens;
  labels += other.labels;
  token_pairs += other.token_pairs;
  patches += other.patches;
  patch_pairs += other.patch_pairs;
  return *this;
}

Work Work::operator/(double parts) const {
  return {.tokens = tokens / parts,
          .labels = labels / parts,
          .token_pairs = token_pairs / parts,
          .patches = patches / parts,
          .patch_pairs = patch_pairs / parts};
}

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

PassCosts pass_flops(const Product& product) {
  const Flops& f = product.flops;
  if (product.part == Product::Part::kHead) return {.forward = f.total() + f.again};
  const double weight = product.weight && product.trains ? f.forward : 0;
  return {.forward = f.forward, .backward_input = f.backward - weight + f.again, .backward_weight = weight};
}

std::vector<Product> products_of(const ModelConfig& config,
                                 const ParamTable& params,
                                 const Work& work,
                                 const Recompute& recompute,
                                 bool trains_before) {
  std::vector<const Param*> ordered;
  for (const Param& param : params) ordered.push_back(&param);
  std::stable_sort(ordered.begin(), ordered.end(), [](const Param* a, const Param* b) {
    return part_of(a->spec.name) < part_of(b->spec.name);
  });
  const double merged = work.patches / static_cast<double>(config.connector.merge * config.connector.merge);
  const double rows[] = {work.patches, merged, 0, work.tokens, work.labels};
  const DecoderConfig& decoder = config.decoder;
  const double width = static_cast<double>(decoder.heads * decoder.head_dim);

  std::vector<Product> out;
  Counter counter{.recompute = recompute, .trains_upstream = trains_before};
  const auto head = [&](const Param& param) {
    const Flops flops = counter.count(2 * elements(param.spec) * work.labels, param.trainable, -1, Keep::kInput);
    out.push_back({Product::Part::kHead, &param.spec, -1, work.labels, param.trainable, flops});
  };
  const Param* embedding = nullptr;
  for (const Param* param : ordered) {
    const ParamSpec& spec = param->spec;
    const Part part = part_of(spec.name);
    const int64_t layer = layer_of(spec.name).value_or(-1);
    if (part == Part::kEmbedding) embedding = param;
    if (part == Part::kHead && is_matmul(spec, part)) {
      head(*param);
    } else if (is_matmul(spec, part)) {
      const double seen = rows[static_cast<int>(part)], share = share_used(spec, decoder);
      const bool is_last = spec.name.ends_with(".mlp.down.weight");
      out.push_back(
          {linear_of(part),
           &spec,
           layer,
           seen * share,
           param->trainable,
           counter.count(
               2 * elements(spec) * share * seen, param->trainable, layer, is_last ? Keep::kInput : Keep::kResults)});
    }
    counter.trains_upstream |= param->trainable;
    // The attention core follows its q, k, v projection; its operands are activations, so it never costs a weight's
    // share.
    if (spec.name.find(".attn.qkv.weight") == std::string::npos) continue;
    const bool tower = part == Part::kTower;
    const double core =
        tower ? 4 * work.patch_pairs * static_cast<double>(config.tower.hidden) : 2 * work.token_pairs * width;
    out.push_back({tower ? Product::Part::kTowerAttention : Product::Part::kAttention,
                   nullptr,
                   layer,
                   tower ? work.patches : work.tokens,
                   false,
                   counter.count(core, counter.trains_upstream, layer, Keep::kAttention)});
  }
  const bool has_end = std::any_of(
      params.begin(), params.end(), [](const Param& param) { return param.spec.name == "decoder.norm.weight"; });
  if (decoder.tied && embedding && has_end) head(*embedding);
  return out;
}

FlopsByPart flops_by_part(const ModelConfig& config,
                          const ParamTable& params,
                          const Work& work,
                          const Recompute& recompute) {
  FlopsByPart flops;
  Flops* parts[] = {
      &flops.tower, &flops.tower_attention, &flops.connector, &flops.decoder, &flops.attention, &flops.head};
  for (const Product& product : products_of(config, params, work, recompute))
    *parts[static_cast<int>(product.part)] += product.flops;
  return flops;
}

double active_parameters(const ModelConfig& config, const ParamTable& params) {
  double active = 0;
  for (const Param& param : params) active += elements(param.spec) * share_used(param.spec, config.decoder);
  return active;
}

Flops model_flops(const ModelConfig& config, const ParamTable& params, const Work& work) {
  return flops_by_part(config, params, work).sum();
}

}  // namespace hanok
