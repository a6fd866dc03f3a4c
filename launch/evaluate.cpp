#include "trainer/evaluate.h"

#include <iostream>

#include "base/log.h"
#include "configs/schema/check.h"
#include "dataio/tensor_store.h"
#include "launch/bootstrap.h"
#include "launch/command.h"
#include "launch/load_model.h"
#include "trainer/data.h"

namespace hanok {

int evaluate_command(const Arguments& arguments) {
  RunConfig config = load_run_config(arguments, 0);
  HANOK_REQUIRE(!config.eval.set.empty(), kConfig)
      << "eval.set: got none, expected a name in data.sets; for example --set eval.set=heldout";
  Bootstrap bootstrap(config);
  const LoadedModel loaded = load_trained_model(config, arguments, bootstrap);
  const SampleEncoder encoder = make_encoder(config);
  config.data.sets = {{config.eval.set, config.data.sets.at(config.eval.set)}};
  const auto datasets = open_datasets(config, encoder, loaded.groups);
  const StageConfig& stage = config.stages.back();
  const StageData data = make_stage_data(config, stage, datasets, encoder.vision, loaded.groups);
  const EvalResult result =
      evaluate(*loaded.model,
               *datasets.at(config.eval.set),
               encoder,
               {.seq_len = stage.seq_len,
                .rows_per_forward = config.eval.rows > 0 ? config.eval.rows : stage.rows_per_micro_batch,
                .batch = data.options.batch,
                .shuffles = static_cast<int>(config.eval.shuffles),
                .seed = static_cast<uint64_t>(config.seed),
                .dump = config.eval.dump,
                .submission = config.eval.submission,
                .show_progress = true});
  if (world_rank() == 0) {
    std::cout << to_text(result) << std::flush;
    if (!config.eval.output.empty()) write_file_atomically(config.eval.output, to_json(result));
  }
  return 0;
}

}  // namespace hanok
