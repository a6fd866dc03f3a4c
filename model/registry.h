// Names in a config -> factories: three explicit tables.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "model/connector/connector.h"
#include "model/decoder/decoder.h"
#include "model/module.h"
#include "model/vision/tower.h"

namespace hanok {

/// errors: kConfig listing the known types. `none` gives null.
std::unique_ptr<Tower> make_tower(const ModelConfig& config, const BuildContext& ctx);
std::unique_ptr<Connector> make_connector(const ModelConfig& config, const BuildContext& ctx);
std::unique_ptr<Decoder> make_decoder(const ModelConfig& config, const BuildContext& ctx);
std::vector<std::string> known_towers();
std::vector<std::string> known_connectors();
std::vector<std::string> known_decoders();

}  // namespace hanok
