// FLOPs by part of a Hugging Face config.json, for tests/oracle/flops.py.
//   cost_probe CONFIG.json TOKENS LABELS TOKEN_PAIRS PATCHES PATCH_PAIRS   -> one JSON line
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/cost.h"
#include "model/hf/name_map.h"
#include "model/vlm.h"

int main(int argc, char** argv) {
  using namespace hanok;
  try {
    HANOK_REQUIRE(argc == 7, kConfig) << "cost_probe: got " << argc - 1 << " arguments, expected 6";
    std::ifstream file(argv[1]);
    ModelConfig config;
    read_hf_config(nlohmann::json::parse(file), config);
    const Vlm model(config, make_single_groups(), at::kFloat, at::kMeta);
    const Work work{.tokens = std::stod(argv[2]),
                    .labels = std::stod(argv[3]),
                    .token_pairs = std::stod(argv[4]),
                    .patches = std::stod(argv[5]),
                    .patch_pairs = std::stod(argv[6])};
    const FlopsByPart flops = flops_by_part(config, model.params(), work);
    nlohmann::json out;
    const std::pair<const char*, const Flops*> parts[] = {{"tower", &flops.tower},
                                                          {"tower_attention", &flops.tower_attention},
                                                          {"connector", &flops.connector},
                                                          {"decoder", &flops.decoder},
                                                          {"attention", &flops.attention},
                                                          {"head", &flops.head}};
    for (const auto& [name, part] : parts) out[name] = {{"forward", part->forward}, {"backward", part->backward}};
    std::cout << out.dump() << "\n";
    return 0;
  } catch (const Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
