#include "model/registry.h"

#include "base/error.h"
#include "model/connector/merger_mlp.h"
#include "model/decoder/dense.h"
#include "model/vision/qwen3vl_vit.h"

namespace hanok {
namespace {

// Tables, not static registration objects: the linker drops those from static libraries, and a table can be read.
template <class Part>
struct Entry {
  const char* name;
  std::unique_ptr<Part> (*make)(const ModelConfig&, const BuildContext&);
};
std::unique_ptr<Tower> make_no_tower(const ModelConfig&, const BuildContext&) {
  return nullptr;
}
constexpr Entry<Tower> kTowers[] = {{"qwen3vl_vit", &make_qwen3vl_vit}, {"none", &make_no_tower}};
constexpr Entry<Connector> kConnectors[] = {{"merger_mlp", &make_merger_mlp}};
constexpr Entry<Decoder> kDecoders[] = {{"qwen3_dense", &make_dense}, {"qwen3_moe", &make_dense}};

template <class Part, size_t N>
std::vector<std::string> names(const Entry<Part> (&table)[N]) {
  std::vector<std::string> all;
  for (const auto& entry : table) all.push_back(entry.name);
  return all;
}

template <class Part, size_t N>
std::unique_ptr<Part> make(const Entry<Part> (&table)[N],
                           const char* key,
                           const std::string& type,
                           const ModelConfig& config,
                           const BuildContext& ctx) {
  for (const auto& entry : table)
    if (type == entry.name) return entry.make(config, ctx);
  HANOK_FAIL(kConfig) << "model." << key << ".type: got " << type << ", expected one of " << names(table);
}

}  // namespace

std::unique_ptr<Tower> make_tower(const ModelConfig& config, const BuildContext& ctx) {
  return make(kTowers, "tower", config.tower.type, config, ctx);
}
std::unique_ptr<Connector> make_connector(const ModelConfig& config, const BuildContext& ctx) {
  if (config.tower.type == "none") return nullptr;
  HANOK_REQUIRE(config.connector.out == 0 || config.connector.out == config.decoder.hidden, kConfig)
      << "model.connector.out: got " << config.connector.out << ", expected decoder width " << config.decoder.hidden;
  return make(kConnectors, "connector", config.connector.type, config, ctx);
}
std::unique_ptr<Decoder> make_decoder(const ModelConfig& config, const BuildContext& ctx) {
  return make(kDecoders, "decoder", config.decoder.type, config, ctx);
}
std::vector<std::string> known_towers() {
  return names(kTowers);
}
std::vector<std::string> known_connectors() {
  return names(kConnectors);
}
std::vector<std::string> known_decoders() {
  return names(kDecoders);
}

}  // namespace hanok
