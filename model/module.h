// How a layer declares its weights. A layer is a struct that holds tensors and sub-layers; it is given a BuildContext once.
#pragma once

#include <string>
#include <vector>

#include "parallel/groups.h"
#include "parallel/param.h"
#include "parallel/plan.h"

namespace hanok {

/// What a layer says of a weight; name, cut and dtype are the context's.
struct ParamDeclaration {
  std::vector<int64_t> shape;     // global
  std::vector<Segment> segments;  // along the cut dim; empty: one segment over it
  Init init;
};

/// Shared by all layers of one model while it is built.
struct BuildState {
  const Plan* plan = nullptr;
  const Groups* groups = nullptr;
  ParamTable* params = nullptr;
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;  // meta: declare without memory
  std::vector<std::string> modules;  // names that asked for a rule, for Plan::check_all_used
};

class BuildContext {
 public:
  explicit BuildContext(BuildState& state) : state_(&state) {}
  /// The context of a sub-layer: ctx.in("attn").in("qkv").
  BuildContext in(const std::string& name) const;
  BuildContext in(const std::string& name, int64_t index) const;  // "layers.17"
  const std::string& name() const { return name_; }
  const Groups& groups() const { return *state_->groups; }
  at::ScalarType dtype() const { return state_->dtype; }
  at::Device device() const { return state_->device; }
  /// The plan's rule for this module; noted as used.
  const PlanRule& rule() const;
  /// Declares "<module>.<weight>" with the rule's cut (bias of a column-cut layer: dim 0; of a row-cut one: whole), adds it to
  /// the table and returns the local tensor (uninitialised). `sum_grad_over_tp` is derived: a whole weight used between
  /// sequence-cut edges, when sequence parallelism is on.
  Tensor param(const std::string& weight, const ParamDeclaration& declaration) const;

 private:
  BuildState* state_;
  std::string name_;
};

}  // namespace hanok
