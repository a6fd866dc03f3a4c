#include "model/layers/embedding.h"

#include "base/error.h"
#include "model/kernels/lookup_rows.h"
#include "parallel/redistribute.h"

namespace hanok {

Embedding::Embedding(const BuildContext& ctx, int64_t vocab, int64_t width, int twin)
    : rule_(ctx.rule()), groups_(&ctx.groups()), vocab_(vocab) {
  weight_ = ctx.param("weight", {.shape = {vocab, width}, .init = ctx.random_embedding(), .twin = twin});
  first_row_ = ctx.first_of_last_param();
}

Tensor Embedding::forward(const Tensor& tokens_T) const {
  if (tokens_T.is_cpu() && tokens_T.numel() > 0) {
    const auto [smallest, largest] = at::aminmax(tokens_T);
    HANOK_REQUIRE(smallest.item<int64_t>() >= 0 && largest.item<int64_t>() < vocab_, kShape)
        << "token id: got " << smallest.item<int64_t>() << " to " << largest.item<int64_t>() << ", expected 0 to "
        << vocab_ - 1 << "; embedding; check that the tokenizer belongs to the model";
  }
  const Tensor part = lookup_rows(weight_, tokens_T, first_row_);
  return redistribute(part, Layout::kPartial, rule_.out, *groups_);
}

}  // namespace hanok
