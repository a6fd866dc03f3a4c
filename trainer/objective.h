// The only code that differs between stages.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dataio/batch.h"
#include "model/vlm.h"

namespace hanok {

class Objective {
 public:
  virtual ~Objective() = default;
  /// May rewrite the batches of one optimizer step: attach teacher log-probabilities, replace prompts by rollouts.
  virtual void prepare(Vlm& model, std::vector<Batch>& batches) {}
  /// Sum over local tokens of weight * loss / step_weight, which is the sum of the weights of the whole step (scalar
  /// f64 on the model's device). -> scalar f32 with gradient, of which the gradient itself is 1: gradients may be made
  /// in the forward. The same on every rank of tp. Asked where the head is: on the last piece of a pipeline.
  virtual Tensor loss(const Vlm& model, const ModelOutput& y, const Batch& batch, const Tensor& step_weight) const = 0;
};

/// errors: kConfig listing the known objectives
std::unique_ptr<Objective> make_objective(const std::string& name);
std::vector<std::string> known_objectives();

}  // namespace hanok
