#include "base/log.h"
#include "launch/bootstrap.h"
#include "launch/command.h"
#include "launch/out_of_memory.h"
#include "launch/predict.h"
#include "trainer/run_stages.h"

namespace hanok {

int train(const Arguments& arguments) {
  const RunConfig config = load_run_config(arguments, world_size());
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
