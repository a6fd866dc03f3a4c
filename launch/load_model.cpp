#include "launch/load_model.h"

#include "base/log.h"
#include "configs/schema/check.h"
#include "trainer/agree.h"
#include "trainer/checkpoint.h"
#include "trainer/run_folder.h"
#include "trainer/run_stages.h"
#include "trainer/weights.h"

namespace hanok {
namespace {

/// Empty: there is none.
std::string checkpoint_of(const RunConfig& config, const Arguments& arguments, const Groups& groups) {
  const RunFolder folder(config.out);
  const bool is_named = !arguments.checkpoint.empty();
  const CheckpointPath found = find_checkpoint(config, folder, is_named ? arguments.checkpoint : "auto", groups);
  return (is_named ? found : handed_on(config, folder, found, groups)).directory;
}

}  // namespace

LoadedModel load_trained_model(RunConfig& config, const Arguments& arguments, Bootstrap& bootstrap) {
  if (!config.model.path.empty()) read_model_folder(config.model);
  const ParallelConfig& layout = config.stages.empty() ? config.parallel : config.stages.back().parallel;
  check_model(config.model, layout);
  LoadedModel out;
  out.groups = make_stage_groups(layout, bootstrap.world());
  std::string checkpoint = checkpoint_of(config, arguments, out.groups);
  HANOK_REQUIRE(!checkpoint.empty() || !config.model.path.empty(), kCheckpoint)
      << "weights: got neither a checkpoint in " << config.out
      << " nor model.path, expected one of them; train first, or pass --checkpoint";
  const at::ScalarType dtype = model_dtype(config.model, bootstrap.device());
  require_room_for_weights(config.model, out.groups, dtype, bootstrap.device(), layout);
  out.model = std::make_unique<Vlm>(config.model, out.groups, dtype, bootstrap.device(), layout);
  out.model->set_execution({.context = context_way(layout.context)});
  if (checkpoint.empty()) load_weights(*out.model, config.model.path);
  for (int i = 1; !checkpoint.empty(); ++i) {
    Comm& control = *out.groups.control;
    const auto failure = failure_of(control, [&] { load_checkpoint_weights(checkpoint, *out.model); });
    if (!failure) break;
    if (i == kReadsBesideATraining || !was_removed(checkpoint, control)) throw *failure;
    HANOK_LOG_RANK0(INFO) << checkpoint << " was removed while it was read: a run saves there; the next one is read";
    checkpoint = checkpoint_of(config, arguments, out.groups);
  }
  out.source = checkpoint.empty() ? config.model.path : checkpoint;
  HANOK_LOG_RANK0(INFO) << "weights from " << out.source;
  return out;
}

}  // namespace hanok
