#include "trainer/evaluate.h"

#include <unistd.h>

#include <filesystem>
#include <iostream>

#include "base/log.h"
#include "configs/schema/check.h"
#include "dataio/tensor_store.h"
#include "launch/bootstrap.h"
#include "launch/command.h"
#include "launch/load_model.h"
#include "trainer/data.h"
#include "trainer/run_stages.h"

namespace hanok {
namespace {

/// Asked before the set is measured: what was measured could not be kept.
void require_writable(const char* key, const std::string& file) {
  if (file.empty()) return;
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::file_type type = fs::symlink_status(file, error).type();
  HANOK_REQUIRE(type == fs::file_type::regular || type == fs::file_type::not_found || type == fs::file_type::directory,
                kIo)
      << key << ": got " << file
      << ", which is a link, a pipe or a device, expected a file or none, for a new one takes "
      << "its place; name a file";
  const fs::path folder = fs::absolute(file, error).parent_path();
  HANOK_REQUIRE(!fs::is_directory(file, error) && ::access(folder.c_str(), W_OK) == 0, kIo)
      << key << ": got " << file << ", expected a file in a folder that can be written; " << folder.string()
      << "; make the folder, or choose another";
}

bool is_same_file(const std::string& a, const std::string& b) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (fs::equivalent(a, b, error)) return true;
  const fs::path first = fs::weakly_canonical(a, error), second = fs::weakly_canonical(b, error);
  return !error && first == second;
}

/// No output takes the place of what is read, or of another output; while it is written it is called OUTPUT.tmp.
void require_apart(const Arguments& arguments, const RunConfig& config) {
  std::vector<std::pair<std::string, std::string>> taken = {{"--config", arguments.config}};
  for (const auto& [name, set] : config.data.sets) taken.emplace_back(concat("data.sets.", name, ".path"), set.path);
  for (const auto& [key, file] : {std::pair<const char*, const std::string&>{"eval.dump", config.eval.dump},
                                  {"eval.submission", config.eval.submission},
                                  {"eval.output", config.eval.output}}) {
    if (file.empty()) continue;
    for (const auto& [other_key, other] : taken)
      HANOK_REQUIRE(
          !is_same_file(file, other) && !is_same_file(file + ".tmp", other) && !is_same_file(file, other + ".tmp"),
          kConfig)
          << key << ": got the file of " << other_key << ", expected one of its own, which is written anew; " << file
          << "; choose another";
    taken.emplace_back(key, file);
  }
}

}  // namespace

int evaluate_command(const Arguments& arguments) {
  RunConfig config = load_run_config(arguments, 0);
  HANOK_REQUIRE(!config.eval.set.empty(), kConfig)
      << "eval.set: got none, expected a name in data.sets; for example --set eval.set=heldout";
  require_apart(arguments, config);
  require_writable("eval.dump", config.eval.dump);
  require_writable("eval.submission", config.eval.submission);
  require_writable("eval.output", config.eval.output);
  Bootstrap bootstrap(config);
  const LoadedModel loaded = load_trained_model(config, arguments, bootstrap);
  const SampleEncoder encoder = make_encoder(config);
  config.data.sets = {{config.eval.set, config.data.sets.at(config.eval.set)}};
  for (StageConfig& stage : config.stages)
    stage.mixture = {{config.eval.set, 1.0}};  // nothing else is packed or opened
  const auto datasets = open_datasets(config, encoder, loaded.groups, Bootstrap::stop_requested);
  const StageConfig& stage = config.stages.back();
  EvalOptions options = evaluation_options(config, stage, encoder, loaded.groups);
  options.dump = config.eval.dump;
  options.submission = config.eval.submission;
  options.show_progress = true;
  options.stop_requested = Bootstrap::stop_requested;
  const EvalResult result = evaluate(*loaded.model, *datasets.at(config.eval.set), encoder, options);
  if (!result.complete) throw Stopped();
  if (world_rank() == 0) {
    std::cout << to_text(result) << std::flush;
    if (!config.eval.output.empty()) write_file_atomically(config.eval.output, to_json(result));
  }
  require_finite(result);
  return 0;
}

}  // namespace hanok
