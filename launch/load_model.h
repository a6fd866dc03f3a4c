// A trained model for the commands that only read it.
#pragma once

#include <memory>

#include "launch/bootstrap.h"
#include "launch/command.h"
#include "model/vlm.h"

namespace hanok {

struct LoadedModel {
  Groups groups;
  std::unique_ptr<Vlm> model;
  std::string source;  // the checkpoint or folder that the weights came from
};

/// Weights: --checkpoint, else what save.export says of the newest stage of the run folder, else model.path. Fills
/// config.model from model.path. errors: kCheckpoint when there is none of them
LoadedModel load_trained_model(RunConfig& config, const Arguments& arguments, Bootstrap& bootstrap);

}  // namespace hanok
