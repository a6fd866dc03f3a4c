#include "dataio/pack.h"

#include "base/log.h"
#include "launch/bootstrap.h"
#include "launch/command.h"
#include "trainer/data.h"
#include "trainer/weights.h"

namespace hanok {

int pack(const Arguments& arguments) {
  RunConfig config = load_run_config(arguments, 0);
  if (!config.model.path.empty()) read_model_folder(config.model);
  if (world_rank() != 0) return 0;  // one process packs; its worker threads share the work
  start_logging("trainer", 0, 1, "", static_cast<int>(config.log.verbosity));
  const SampleEncoder encoder = make_encoder(config);
  const Groups alone = make_single_groups();
  for (const auto& [name, dataset] : config.data.sets) {
    const PackReport report = pack_together(name, config, encoder, *alone.control, true, Bootstrap::stop_requested);
    HANOK_LOG(INFO) << name << ": " << (report.was_cached ? "already packed, " : "") << report.num_samples
                    << " samples, " << report.num_images << " pictures, " << report.num_tokens << " tokens, "
                    << report.bad.total() << " skipped"
                    << (report.bad_list.empty() ? "" : " (listed in " + report.bad_list + ")") << "; " << report.file;
  }
  return 0;
}

}  // namespace hanok
