// Rules across keys, as one table {name, holds, message}; every violation is reported at once.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/config.h"

namespace hanok {

struct Violation {
  std::string rule, message;
};
/// `world_size` 0: layout against -np is not checked (plan).
std::vector<Violation> violations(const RunConfig& config, int world_size);
/// Rules about the model's numbers alone (after a model folder has been read into it), with the layout it will run on.
std::vector<Violation> violations(const ModelConfig& model, const ParallelConfig& parallel);
std::vector<std::string> rule_names();

/// errors: kConfig, one line for each violated rule.
void check_config(const RunConfig& config, int world_size);
void check_model(const ModelConfig& model, const ParallelConfig& parallel);
/// Whether attention can deal a rank's heads over `ranks` of cp (parallel.context: heads): query heads evenly, and
/// key/value heads evenly or each to several ranks.
bool heads_fit_over_cp(int64_t heads, int64_t kv_heads, int64_t ranks);
/// The data parallel size: parallel.dp, or what `world_size` leaves. errors: kConfig if it does not divide.
int64_t data_parallel_size(const ParallelConfig& parallel, int world_size);

}  // namespace hanok
