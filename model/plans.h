#pragma once

#include "configs/schema/config.h"
#include "parallel/plan.h"

namespace hanok {

/// How the weights of this model are cut: the rules of its family, without those of parts that it does not have.
/// errors: kConfig listing the known families
Plan plan_of(const ModelConfig& config);

}  // namespace hanok
