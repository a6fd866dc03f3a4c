// How a forward is carried out; none of it changes what is computed.
#pragma once

#include <cstdint>

#include "model/kernels/attention.h"

namespace hanok {

struct Execution {
  int64_t recompute_every = 0;  // 0: none; k: layers 0, k, 2k, ... of tower and decoder run again in the backward
  AttentionKernel attention = AttentionKernel::kAuto;
  ContextWay context = ContextWay::kAuto;  // how attention meets the rows of other ranks
};

}  // namespace hanok
