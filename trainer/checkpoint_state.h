// The JSON part of a checkpoint. Private to trainer/.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "configs/schema/config.h"
#include "parallel/mesh.h"
#include "trainer/state.h"

namespace hanok {

/// Everything that is not a tensor.
struct CheckpointState {
  TrainState train;
  std::string stage_name;
  std::string config;  // echo() of the resolved config
  MeshShape mesh;
  bool sequence_parallel = false;
  int threads = 0;  // intra-op threads of a rank
};

/// This process's: the state plus versions and commit.
nlohmann::json to_json(const CheckpointState& state);
/// errors: kCheckpoint naming the file if a field is missing or of another type
CheckpointState state_from_json(const nlohmann::json& json, const std::string& directory);

}  // namespace hanok
