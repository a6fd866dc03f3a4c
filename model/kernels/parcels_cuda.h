// CUDA side of parcels.h, on raw device pointers.
#pragma once

#include "base/cuda/launch.h"

namespace hanok {

struct CountParcels {
  CUstream_st* stream;
  const int64_t *index, *row;           // [tokens, choices], [tokens]
  int64_t* rank;                        // [tokens, ranks]: r, or -1 where no parcel goes to r
  int64_t* counts;                      // [ranks, 2], added to
  int64_t tokens, choices, ranks, own;  // own: experts of a rank
};
void launch(const CountParcels& args);

/// The columns of parcels behind the row.
struct WriteNotes {
  CudaCall call;
  const void* weight;           // [tokens, choices]
  const int64_t *index, *slot;  // [tokens, choices], [num_parcels]
  void* parcels;
  int64_t num_parcels, choices, ranks, own, width, columns;  // columns: of a parcel
};
void launch(const WriteNotes& args);

/// dweight[t, k] = dparcels[place[t, r], width + k], r the rank of its expert; 0 where there is no token.
struct CollectNotes {
  CudaCall call;
  const void* dparcels;
  const int64_t *index, *place;  // [tokens, choices], [tokens, ranks]
  void* dweight;
  int64_t tokens, choices, ranks, own, width, columns;
};
void launch(const CollectNotes& args);

struct ReadExperts {
  CudaCall call;
  const void* parcels;
  int64_t* index;  // [num_parcels, choices]
  int64_t num_parcels, choices, width, columns;
};
void launch(const ReadExperts& args);

}  // namespace hanok
