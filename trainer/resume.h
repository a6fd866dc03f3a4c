// Whether a checkpoint may be gone on from under the config of today.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "trainer/state.h"

namespace hanok {

/// "key: was X, is Y" for what differs between the config of a checkpoint and today's, apart from where things lie,
/// what is said, and when is saved.
std::vector<std::string> resume_differences(const RunConfig& was, const RunConfig& is);
/// Stages are compared by their names.
/// errors: kConfig naming every difference that makes it another model or other random numbers
void require_same_model(const std::vector<std::string>& differences);
/// errors: kConfig where stages that both know come in another order: what the run has done would be out of turn
void require_same_order_of_stages(const RunConfig& was, const RunConfig& is);
/// Names of today's stages before stage `index` that the config of the checkpoint did not have.
std::vector<std::string> stages_left_out(const RunConfig& was, const RunConfig& is, int index);
/// For going on inside stage `index`. errors: kConfig naming every difference in what trains or in the order of data;
/// kConfig if the data are others (`data_key` is today's)
void require_same_stage(const std::vector<std::string>& differences,
                        int index,
                        const TrainState& state,
                        const std::string& data_key);

}  // namespace hanok
