// Which parameters a stage trains.
#pragma once

#include "configs/schema/config.h"
#include "model/vlm.h"
#include "parallel/param.h"

namespace hanok {

/// Sets Param::trainable by glob. errors: kConfig if a glob of `trainable`, of optimizer.groups or of an
/// optimizer.no_decay that is not the usual one matches no parameter
void freeze(ParamTable& params, const StageConfig& stage);
/// The same for the table of the whole model and this rank's part of it.
void freeze(Vlm& model, const StageConfig& stage);

}  // namespace hanok
