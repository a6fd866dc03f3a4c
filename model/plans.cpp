#include "model/plans.h"

#include "base/error.h"

namespace hanok {
namespace {

// Weights applied to every head on its own: heads are cut over tp, so that gradients are partial there.
PlanRule per_head(std::string glob) {
  return {std::move(glob), Cut::kWhole, Layout::kHeads, Layout::kHeads};
}
// The last layer before vision tokens are written into the stream: every rank needs all of them.
PlanRule rowwise_to_full(std::string glob) {
  return {std::move(glob), Cut::kRow, Layout::kHeads, Layout::kFull};
}

std::vector<PlanRule> qwen3(const ModelConfig& config) {
  std::vector<PlanRule> rules = {
      vocab("decoder.embed"),  // out: full; vision tokens are written in, then rows are cut
      per_head("decoder.layers.*.attn.*_norm"),
      colwise("decoder.layers.*.attn.qkv"),
      rowwise("decoder.layers.*.attn.out"),
      colwise("decoder.layers.*.mlp.up"),
      rowwise("decoder.layers.*.mlp.down"),
      whole("decoder.**norm"),
      vocab("decoder.head"),
  };
  if (config.tower.type == "none") return rules;
  const std::vector<PlanRule> vision = {
      whole("tower.patch_embed"),
      whole("tower.position"),
      whole("tower.**norm"),
      colwise("tower.layers.*.attn.qkv"),
      rowwise("tower.layers.*.attn.out"),
      colwise("tower.layers.*.mlp.up"),
      rowwise("tower.layers.*.mlp.down"),
      whole("connector.**norm"),
      colwise("connector.**mlp.up"),
      rowwise_to_full("connector.**mlp.down"),
  };
  rules.insert(rules.end(), vision.begin(), vision.end());
  return rules;
}

struct Family {
  const char* name;
  std::vector<PlanRule> (*rules)(const ModelConfig&);
};
constexpr Family kFamilies[] = {{"qwen3_vl", &qwen3}, {"qwen3", &qwen3}};

}  // namespace

Plan plan_of(const ModelConfig& config) {
  std::vector<std::string> known;
  for (const Family& family : kFamilies) {
    if (config.known_family() == family.name) return Plan(family.rules(config));
    known.push_back(family.name);
  }
  HANOK_FAIL(kConfig) << "model.family: got " << config.family << ", expected one of " << known;
}

}  // namespace hanok
