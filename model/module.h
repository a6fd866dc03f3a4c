// How a layer declares its weights. A layer is a class that holds tensors and sub-layers; it is given a BuildContext
// once.
#pragma once

#include <string>
#include <vector>

#include "model/pieces.h"
#include "parallel/groups.h"
#include "parallel/param.h"
#include "parallel/plan.h"

namespace hanok {

/// What a layer says of a weight; name, cut and dtype are the context's.
struct ParamDeclaration {
  std::vector<int64_t> shape;     // global
  std::vector<Segment> segments;  // along the cut dim; empty: one segment over it
  Init init;
  int twin = -1;                        // ParamSpec::twin
  int inner_dim = -1;                   // of experts: cut over etp
  std::vector<Segment> inner_segments;  // along it; empty: one segment over it
};

class WeightGradients;

/// Shared by all layers of one model while it is built.
struct BuildState {
  const Plan* plan = nullptr;
  const Groups* groups = nullptr;  // must outlive the model: layers keep it
  ParamTable* params = nullptr;
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;  // meta: declare without memory
  double init_std = 0.02, embed_init_std = 0.02, residual_init_std = 0.02;
  std::vector<PieceRange> pieces = {};    // of the decoder that this rank holds, by chunk
  int twin = -1;                          // stage of the other end of the pipeline, on the rank of one end
  WeightGradients* deferred = nullptr;    // where layers put weight gradients off to, if asked; null: never
  std::vector<std::string> modules = {};  // names that asked for a rule, for Plan::check_all_used
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
  const std::vector<PieceRange>& pieces() const { return state_->pieces; }
  int twin() const { return state_->twin; }
  WeightGradients* deferred() const { return state_->deferred; }
  Init random() const { return normal(state_->init_std); }
  Init random_embedding() const { return normal(state_->embed_init_std); }
  Init random_residual() const { return normal(state_->residual_init_std); }
  /// The plan's rule for this module; noted as used.
  const PlanRule& rule() const;
  /// Declares "<module>.<weight>" with the rule's cut (bias of a column-cut layer: dim 0; of a row-cut one: whole),
  /// adds it to the table and returns the local tensor (uninitialised). `sum_grad_over_tp` is derived: a whole weight
  /// whose input is cut over rows (sequence parallelism) or heads there.
  Tensor param(const std::string& weight, const ParamDeclaration& declaration) const;
  /// First global index along the cut dim of the weight declared last; its global size if this rank holds none of it.
  int64_t first_of_last_param() const;
  /// Weights declared so far, and those from the `first`-th on: what a block hands to recompute().
  size_t num_params() const { return state_->params->size(); }
  std::vector<Tensor> params_since(size_t first) const;

 private:
  BuildState* state_;
  std::string name_;
};

}  // namespace hanok
