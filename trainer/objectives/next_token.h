// Weighted cross-entropy of the next token.
#pragma once

#include "trainer/objective.h"

namespace hanok {

/// Sum over labelled tokens of weight_T / step_weight * -log p(target). How tokens are weighted (each alike, per
/// sample, by the square root) is said by the batch, so that every stage of supervised training is this one objective.
class NextToken : public Objective {
 public:
  Tensor loss(const Vlm& model, const ModelOutput& y, const Batch& batch, const Tensor& step_weight) const override;
};

}  // namespace hanok
