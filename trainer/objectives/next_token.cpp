#include "trainer/objectives/next_token.h"

#include "base/upload.h"
#include "model/loss/cross_entropy.h"

namespace hanok {

Tensor NextToken::loss(const Vlm& model, const ModelOutput& y, const Batch& batch, const Tensor& step_weight) const {
  const Tensor weight_N = batch.weight_T.masked_select(batch.targets_T.ne(-100));  // on the host: nothing waits
  return linear_cross_entropy(
      y.y_TD, model.head(), batch.targets_T, upload(weight_N, y.y_TD.device()) / step_weight, model.groups());
}

}  // namespace hanok
