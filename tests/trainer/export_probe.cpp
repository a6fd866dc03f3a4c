// Drives trainer/weights for oracle/export.py:
//   export_probe import SOURCE TARGET TP DTYPE MAX_SHARD_BYTES WRITTEN_DTYPE
//                              SOURCE -> live parameters on TP threads -> TARGET; WRITTEN_DTYPE auto: as in SOURCE
//   export_probe scratch MODEL_YAML TOKENIZER TARGET TP DTYPE    random weights -> TARGET
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "configs/schema/read.h"
#include "dataio/chat.h"
#include "trainer/weights.h"

namespace hanok {
namespace {

void run(
    const ModelConfig& config, int tp, at::ScalarType dtype, const std::string& target, const ExportOptions& options) {
  const Mesh mesh(MeshShape{.tp = tp});
  run_on_threads(tp, [&](World& world) {
    const Groups groups = make_groups(world, mesh, tp > 1);
    Vlm model(config, groups, dtype, at::kCPU);
    if (config.path.empty()) {
      initialise(model, 11);
    } else {
      load_weights(model, config.path);
    }
    export_model(model, target, options);
  });
}

at::ScalarType dtype_of(const std::string& name) {
  return name == "bfloat16" ? at::kBFloat16 : at::kFloat;
}

std::optional<at::ScalarType> written_dtype(const std::string& name) {
  if (name == "auto") return {};
  return name == "float16" ? at::kHalf : dtype_of(name);
}

int main_of(const std::vector<std::string>& args) {
  if (args.size() == 7 && args[0] == "import") {
    ModelConfig config;
    config.path = args[1];
    read_model_folder(config);
    run(config,
        std::stoi(args[3]),
        dtype_of(args[4]),
        args[2],
        {.source_folder = args[1], .dtype = written_dtype(args[6]), .max_shard_bytes = std::stoll(args[5])});
    return 0;
  }
  if (args.size() == 6 && args[0] == "scratch") {
    const ModelConfig config = read_model_config(args[1]);
    VisionPrep vision;
    vision.patch = config.tower.patch;
    vision.merge = config.connector.merge;
    vision.temporal_patch = config.tower.temporal_patch;
    vision.min_pixels = 4096;
    run(config,
        std::stoi(args[4]),
        dtype_of(args[5]),
        args[3],
        {.tokenizer_folder = args[2], .chat_template = jinja_of("qwen3_vl"), .vision = vision});
    return 0;
  }
  std::cerr << "export_probe: see the comment at the top of its source\n";
  return 2;
}

}  // namespace
}  // namespace hanok

int main(int argc, char** argv) {
  try {
    return hanok::main_of({argv + 1, argv + argc});
  } catch (const hanok::Error& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
