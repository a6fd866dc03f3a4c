// A run of a published shape, as `plan` and the errors of memory see it: no file is read but the shape's.
#pragma once

#include <string>

#include "configs/schema/read.h"

namespace hanok {

/// `shape`: a file of configs/model/ without its ending.
inline RunConfig run_of(const std::string& shape, int64_t rows_per_micro_batch = 1) {
  RunConfig config;
  config.model = read_model_config(HANOK_SOURCE_DIR "/configs/model/" + shape + ".yaml");
  config.model.tokenizer = "somewhere";
  config.data.sets["train"] = {.path = "somewhere"};
  StageConfig stage;
  stage.name = "all";
  stage.seq_len = 4096;
  stage.rows_per_step = 64;
  stage.rows_per_micro_batch = rows_per_micro_batch;
  stage.steps = 10;
  config.stages = {stage};
  return config;
}

}  // namespace hanok
