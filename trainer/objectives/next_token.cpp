#include "trainer/objectives/next_token.h"

#include "base/upload.h"
#include "model/loss/cross_entropy.h"

namespace hanok {

Tensor NextToken::loss(const Vlm& model, const ModelOutput& y, const Batch& batch) const {
  const Tensor nll_N = linear_cross_entropy(y.y_TD, model.head(), batch.targets_T, model.groups());
  const Tensor weight_N = batch.weight_T.masked_select(batch.targets_T.ne(-100));  // on the host: nothing waits
  return (nll_N * upload(weight_N, nll_N.device())).sum();
}

}  // namespace hanok
