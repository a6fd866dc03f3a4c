// Names in a config -> factories: three explicit tables, and the plan of each family.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/connector/connector.h"
#include "model/decoder/decoder.h"
#include "model/vision/tower.h"

namespace hanok {

/// errors: kConfig listing the known types. `none` gives null.
std::unique_ptr<Tower> make_tower(const ModelConfig& config, const BuildContext& ctx);
std::unique_ptr<Connector> make_connector(const ModelConfig& config, const BuildContext& ctx);
std::unique_ptr<Decoder> make_decoder(const ModelConfig& config, const BuildContext& ctx);
const Plan& plan_of(const std::string& family);
std::vector<std::string> known_towers();
std::vector<std::string> known_connectors();
std::vector<std::string> known_decoders();

}  // namespace hanok
