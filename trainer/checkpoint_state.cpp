#include "trainer/checkpoint_state.h"

#include <torch/version.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "trainer/version.h"

namespace hanok {
namespace {

using Json = nlohmann::json;

Json to_json(const TrainState& state) {
  Json out;
  TrainState::fields(state, [&](const char* name, const auto& value) {
    out[name] = value;
    // JSON knows no NaN ("no metric yet"): null stands for it.
    if constexpr (std::is_same_v<decltype(value), const double&>)
      if (!std::isfinite(value)) out[name] = nullptr;
  });
  return out;
}

TrainState train_from(Json json) {
  // Checkpoints from before steps with pictures were counted: until then every step was taken for one.
  if (!json.contains("picture_steps")) json["picture_steps"] = json.at("optimizer_steps");
  TrainState state;
  TrainState::fields(state, [&](const char* name, auto& value) {
    const Json& stored = json.at(name);
    if constexpr (std::is_same_v<decltype(value), double&>) {
      value = stored.is_null() ? std::numeric_limits<double>::quiet_NaN() : stored.template get<double>();
    } else {
      value = stored.template get<std::decay_t<decltype(value)>>();
    }
  });
  return state;
}

}  // namespace

Json to_json(const CheckpointState& state) {
  const MeshShape& m = state.mesh;
  return {{"train", to_json(state.train)},
          {"stage_name", state.stage_name},
          {"config", state.config},
          {"layout",
           {{"pp", m.pp},
            {"dp", m.dp},
            {"cp", m.cp},
            {"tp", m.tp},
            {"ep", m.ep},
            {"etp", m.etp},
            {"sequence", state.sequence_parallel}}},
          {"threads", state.threads},
          {"versions", {{"program", program_version()}, {"commit", git_commit()}, {"torch", TORCH_VERSION}}}};
}

CheckpointState state_from_json(const Json& json, const std::string& directory) {
  try {
    const Json& layout = json.at("layout");
    return {.train = train_from(json.at("train")),
            .stage_name = json.at("stage_name").get<std::string>(),
            .config = json.at("config").get<std::string>(),
            .mesh = {.pp = layout.at("pp").get<int>(),
                     .dp = layout.at("dp").get<int>(),
                     .cp = layout.at("cp").get<int>(),
                     .tp = layout.at("tp").get<int>(),
                     .ep = layout.at("ep").get<int>(),
                     .etp = layout.at("etp").get<int>()},
            .sequence_parallel = layout.at("sequence").get<bool>(),
            .threads = json.at("threads").get<int>()};
  } catch (const Json::exception& error) {
    HANOK_FAIL(kCheckpoint) << "checkpoint state: got '" << error.what() << "', expected the fields of a training run; "
                            << directory << "; it is not a checkpoint of this program: use another";
  }
}

}  // namespace hanok
