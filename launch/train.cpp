#include <filesystem>

#include "base/log.h"
#include "configs/schema/read.h"
#include "dataio/file_io.h"
#include "launch/bootstrap.h"
#include "launch/command.h"
#include "launch/out_of_memory.h"
#include "launch/predict.h"
#include "trainer/run_stages.h"

namespace hanok {

void require_config_apart(const Arguments& arguments, const RunConfig& config) {
  const std::string echoed = config.out + "/config.yaml";
  std::error_code error;
  if (!std::filesystem::equivalent(arguments.config, echoed, error)) return;
  // One that an earlier run wrote loses nothing when the next start writes it again.
  HANOK_REQUIRE(read_file(echoed) == echo(read_config(arguments.config, {})), kConfig)
      << "out: got the folder of --config, expected another one: the resolved config would take the place of yours; "
      << echoed << "; set another `out`, or move the config";
}

int train(const Arguments& arguments) {
  const RunConfig config = load_run_config(arguments, world_size());
  require_config_apart(arguments, config);
  Bootstrap bootstrap(config);
  const Planner planner = planner_of(config, bootstrap.device(), bootstrap.world().size());
  const RunResult result =
      run_stages(config,
                 bootstrap.world(),
                 bootstrap.device(),
                 {.resume = arguments.resume,
                  .stop_requested = Bootstrap::stop_requested,
                  .versions = version_text(),
                  .predict = planner.predict,
                  .time_sublayers = planner.time_sublayers,
                  .explain_refusal = explain_refusal(config, bootstrap.device(), world_rank(), world_size())});
  if (result.end == StageEnd::kStopRequested) {
    HANOK_LOG_RANK0(INFO) << "stopped" << (Bootstrap::stop_reason().empty() ? "" : " by " + Bootstrap::stop_reason())
                          << "; saved " << result.last_checkpoint << "; the same command goes on from there";
  } else {
    HANOK_LOG_RANK0(INFO) << "finished; "
                          << (result.model_folder.empty() ? "checkpoint " + result.last_checkpoint
                                                          : "model " + result.model_folder);
  }
  return 0;
}

}  // namespace hanok
