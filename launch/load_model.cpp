#include "launch/load_model.h"

#include "base/log.h"
#include "configs/schema/check.h"
#include "trainer/checkpoint.h"
#include "trainer/run_folder.h"
#include "trainer/run_stages.h"
#include "trainer/weights.h"

namespace hanok {

LoadedModel load_trained_model(RunConfig& config, const Arguments& arguments, Bootstrap& bootstrap) {
  if (!config.model.path.empty()) read_model_folder(config.model);
  const ParallelConfig& layout = config.stages.empty() ? config.parallel : config.stages.back().parallel;
  check_model(config.model, layout);
  LoadedModel out;
  out.groups = make_stage_groups(layout, bootstrap.world());
  const RunFolder folder(config.out);
  CheckpointPath found =
      find_checkpoint(config, folder, arguments.checkpoint.empty() ? "auto" : arguments.checkpoint, out.groups);
  if (arguments.checkpoint.empty()) found = handed_on(config, folder, found, out.groups);
  const std::string& checkpoint = found.directory;
  HANOK_REQUIRE(!checkpoint.empty() || !config.model.path.empty(), kCheckpoint)
      << "weights: got neither a checkpoint in " << config.out
      << " nor model.path, expected one of them; train first, or pass --checkpoint";
  const at::ScalarType dtype = model_dtype(config.model, bootstrap.device());
  require_room_for_weights(config.model, out.groups, dtype, bootstrap.device(), layout);
  out.model = std::make_unique<Vlm>(config.model, out.groups, dtype, bootstrap.device(), layout);
  out.model->set_execution({.context = context_way(layout.context)});
  if (checkpoint.empty()) {
    load_weights(*out.model, config.model.path);
  } else {
    load_checkpoint_weights(checkpoint, *out.model);
  }
  out.source = checkpoint.empty() ? config.model.path : checkpoint;
  HANOK_LOG_RANK0(INFO) << "weights from " << out.source;
  return out;
}

}  // namespace hanok
