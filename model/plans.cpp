#include "model/plans.h"

#include "base/error.h"

namespace hanok {
namespace {

// Whole weights applied to a part of the heads, or of the rows, on every rank of tp: gradients are partial there.
PlanRule per_part(std::string glob) {
  return {std::move(glob), Cut::kWhole, Layout::kHeads, Layout::kHeads};
}
// The last layer before vision tokens are written into the stream: every rank needs all of them.
PlanRule rowwise_to_full(std::string glob) {
  return {std::move(glob), Cut::kRow, Layout::kHeads, Layout::kFull};
}

std::vector<PlanRule> qwen3(const ModelConfig& config) {
  std::vector<PlanRule> rules = {
      vocab("decoder.embed"),  // out: full; vision tokens are written in, then rows are cut
      per_part("decoder.layers.*.attn.*_norm"),
      colwise("decoder.layers.*.attn.qkv"),
      rowwise("decoder.layers.*.attn.out"),
      whole("decoder.**norm"),
      vocab("decoder.head"),
  };
  const int64_t expert_layers = config.decoder.num_expert_layers();
  if (expert_layers < config.decoder.layers) {
    rules.push_back(colwise("decoder.layers.*.mlp.up"));
    rules.push_back(rowwise("decoder.layers.*.mlp.down"));
  }
  if (expert_layers > 0) {
    rules.push_back(per_part("decoder.layers.*.moe.router"));  // sees this rank's part of the rows, however they lie
    rules.push_back(expert("decoder.layers.*.moe.experts.up"));
    rules.push_back(expert("decoder.layers.*.moe.experts.down"));
  }
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
constexpr Family kFamilies[] = {
    {"qwen3_vl", &qwen3}, {"qwen3", &qwen3}, {"qwen3_vl_moe", &qwen3}, {"qwen3_moe", &qwen3}};

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
