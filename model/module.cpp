#include "model/module.h"

namespace hanok {

BuildContext BuildContext::in(const std::string& name) const {
  BuildContext child = *this;
  child.name_ = name_.empty() ? name : name_ + "." + name;
  return child;
}

BuildContext BuildContext::in(const std::string& name, int64_t index) const {
  return in(name).in(std::to_string(index));
}

const PlanRule& BuildContext::rule() const {
  const PlanRule& rule = state_->plan->rule(name_);
  if (state_->modules.empty() || state_->modules.back() != name_) state_->modules.push_back(name_);
  return rule;
}

Tensor BuildContext::param(const std::string& weight, const ParamDeclaration& declaration) const {
  const PlanRule& rule = this->rule();
  ParamSpec spec{.name = name_ + "." + weight,
                 .shape = declaration.shape,
                 .segments = declaration.segments,
                 .init = declaration.init,
                 .twin = declaration.twin};
  switch (rule.cut) {
    case Cut::kWhole: break;
    case Cut::kColumn: spec.cut_dim = 0; break;
    case Cut::kRow: spec.cut_dim = spec.shape.size() >= 2 ? 1 : -1; break;
    case Cut::kVocab:
      spec.cut_dim = 0;
      spec.uneven = true;
      break;
    case Cut::kExpert:
      spec.cut_dim = 0;
      spec.cut_axis = Axis::kEp;
      spec.inner_dim = declaration.inner_dim;
      spec.inner_segments = declaration.inner_segments;
      if (spec.inner_dim >= 0 && spec.inner_segments.empty())
        spec.inner_segments = {{.size = spec.shape[spec.inner_dim]}};
      break;
  }
  if (spec.cut_dim >= 0 && spec.segments.empty()) spec.segments = {{.size = spec.shape[spec.cut_dim]}};
  if (spec.cut_dim < 0) {
    // The bias of a row-cut layer is added where the sum has gone: on own rows only if those are cut.
    const Layout where = rule.cut == Cut::kRow ? rule.out : rule.in;
    const bool rows_cut = where == Layout::kSequence && groups().sequence_parallel;
    spec.sum_grad_over_tp = rows_cut || (where == Layout::kHeads && rule.cut == Cut::kWhole);
  }
  Tensor value = at::empty(local_shape(spec, groups()), at::TensorOptions().dtype(dtype()).device(device()));
  value.set_requires_grad(true);
  state_->params->push_back({.spec = std::move(spec), .value = value});
  return value;
}

int64_t BuildContext::first_of_last_param() const {
  const ParamSpec& spec = state_->params->back().spec;
  const auto ranges = local_ranges(spec, groups());
  return ranges.empty() ? spec.shape.at(0) : ranges.front().global_begin;
}

std::vector<Tensor> BuildContext::params_since(size_t first) const {
  std::vector<Tensor> values;
  for (size_t i = first; i < state_->params->size(); ++i) values.push_back((*state_->params)[i].value);
  return values;
}

}  // namespace hanok
