// How a forward is carried out; none of it changes what is computed.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "configs/schema/config.h"
#include "model/kernels/attention.h"
#include "parallel/kept.h"

namespace hanok {

/// Which layers run again in the backward, and what they keep until then.
struct Recompute {
  int64_t every = 0;  // 0: none; k: layers 0, k, 2k, ... of tower and decoder
  Keep keep = Keep::kInput;
  bool offload = false;  // what is kept lies in host memory in between
  bool applies_to(int64_t layer) const { return every > 0 && layer % every == 0; }
};

/// What a stage's keys say.
inline Recompute recompute_of(const StageConfig& stage) {
  if (stage.recompute == "none") return {};
  const Keep keep = stage.recompute == "selective"           ? Keep::kResults
                    : stage.recompute == "all_but_attention" ? Keep::kAttention
                                                             : Keep::kInput;
  return {.every = stage.recompute_every, .keep = keep, .offload = stage.offload};
}

struct Execution {
  Recompute recompute;
  AttentionKernel attention = AttentionKernel::kAuto;
  ContextWay context = ContextWay::kAuto;  // how attention meets the rows of other ranks
  /// Called with weights before a forward reads them: new values may still be on their way. Empty: they are there.
  std::function<void(const std::vector<Tensor>&)> before_use;
  void will_use(const std::vector<Tensor>& weights) const {
    if (before_use) before_use(weights);
  }
};

}  // namespace hanok
