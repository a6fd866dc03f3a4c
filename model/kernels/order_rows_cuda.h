// CUDA side of order_rows.h, on raw device pointers.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

struct OrderByExpert {
  CUstream_st* stream;
  const int64_t *index, *row;  // [slots]; [slots / choices] or null
  int* counts;                 // [order_blocks(slots, experts), experts + 1], scratch
  int64_t *slot, *place;       // [slots]
  int* ends;                   // [experts]
  int64_t slots, choices, experts;
};
void launch(const OrderByExpert& args);
/// Blocks that count apart.
int64_t order_blocks(int64_t slots, int64_t experts);
/// The most experts that a block's memory holds counts of.
constexpr int64_t kMostOrderedExperts = 12287;

}  // namespace hanok
