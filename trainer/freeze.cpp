#include "trainer/freeze.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "parallel/plan.h"
#include "trainer/optimizer.h"

namespace hanok {

void freeze(ParamTable& params, const StageConfig& stage) {
  const auto require_match = [&](const std::string& glob, const char* key) {
    const bool matches =
        std::any_of(params.begin(), params.end(), [&](const Param& p) { return glob_match(glob, p.spec.name); });
    HANOK_REQUIRE(matches, kConfig) << key << ": got \"" << glob
                                    << "\", expected a glob that matches some parameter; stage " << stage.name
                                    << "; trainer plan lists the names, ** stands for anything";
  };
  for (const std::string& glob : stage.trainable) require_match(glob, "trainable");
  // Recipes name rates of the vision parts; a text model has none, and they mean nothing there.
  const bool has_tower =
      std::any_of(params.begin(), params.end(), [](const Param& p) { return p.spec.name.starts_with("tower."); });
  const auto require_match_of = [&](const std::string& glob, const char* key) {
    const bool is_vision = reach_of(glob) == kByPictures;  // a glob begins as the names that it matches
    if (has_tower || !is_vision) require_match(glob, key);
  };
  for (const ParamGroupConfig& group : stage.optimizer.groups) require_match_of(group.match, "optimizer.groups.match");
  const std::vector<std::string> usual = OptimizerConfig().no_decay;  // not every model has biases
  for (const std::string& glob : stage.optimizer.no_decay)
    if (std::find(usual.begin(), usual.end(), glob) == usual.end()) require_match_of(glob, "optimizer.no_decay");
  for (Param& param : params) {
    param.trainable = std::any_of(stage.trainable.begin(), stage.trainable.end(), [&](const std::string& glob) {
      return glob_match(glob, param.spec.name);
    });
  }
}

void freeze(Vlm& model, const StageConfig& stage) {
  freeze(model.whole(), stage);
  if (&model.whole() == &model.params()) return;
  std::map<std::string, bool> trainable;
  for (const Param& param : model.whole()) trainable[param.spec.name] = param.trainable;
  for (Param& param : model.params()) param.trainable = trainable.at(param.spec.name);
}

}  // namespace hanok
