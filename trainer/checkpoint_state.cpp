#include "trainer/checkpoint_state.h"

#include <torch/version.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "trainer/version.h"

namespace hanok {
namespace {

using Json = nlohmann::json;

/// JSON knows no NaN ("no metric yet"): null stands for it.
Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}
double number_from(const Json& json) {
  return json.is_null() ? std::numeric_limits<double>::quiet_NaN() : json.get<double>();
}

Json to_json(const TrainState& s) {
  return {{"stage", s.stage},
          {"step", s.step},
          {"num_steps", s.num_steps},
          {"cursor", {{"step", s.cursor.step}, {"window", s.cursor.window}, {"row", s.cursor.row}}},
          {"optimizer_steps", s.optimizer_steps},
          {"tokens", s.tokens},
          {"skipped_steps", s.skipped_steps},
          {"skipped_in_a_row", s.skipped_in_a_row},
          {"best_metric", number(s.best_metric)},
          {"best_step", s.best_step},
          {"evals_without_gain", s.evals_without_gain}};
}

TrainState train_from(const Json& json) {
  const Json& cursor = json.at("cursor");
  return {.stage = json.at("stage").get<int>(),
          .step = json.at("step").get<int64_t>(),
          .num_steps = json.at("num_steps").get<int64_t>(),
          .cursor = {.step = cursor.at("step").get<int64_t>(),
                     .window = cursor.at("window").get<int64_t>(),
                     .row = cursor.at("row").get<int64_t>()},
          .optimizer_steps = json.at("optimizer_steps").get<int64_t>(),
          .tokens = json.at("tokens").get<double>(),
          .skipped_steps = json.at("skipped_steps").get<int64_t>(),
          .skipped_in_a_row = json.at("skipped_in_a_row").get<int64_t>(),
          .best_metric = number_from(json.at("best_metric")),
          .best_step = json.at("best_step").get<int64_t>(),
          .evals_without_gain = json.at("evals_without_gain").get<int64_t>()};
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
