#include "base/log.h"
#include "dataio/chat.h"
#include "launch/bootstrap.h"
#include "launch/command.h"
#include "launch/load_model.h"
#include "trainer/run_stages.h"
#include "trainer/weights.h"

namespace hanok {

int export_command(const Arguments& arguments) {
  RunConfig config = load_run_config(arguments, 0);
  const std::string folder = arguments.output.empty() ? config.out + "/model" : arguments.output;
  require_export_target(folder, export_sources(config));
  Bootstrap bootstrap(config);
  const LoadedModel loaded = load_trained_model(config, arguments, bootstrap);
  export_model(*loaded.model, folder, export_options(config));
  HANOK_LOG_RANK0(INFO) << "wrote " << folder << " from " << loaded.source;
  return 0;
}

}  // namespace hanok
