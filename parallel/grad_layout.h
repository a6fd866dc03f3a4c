// Where trainable parameters lie in the flat buffers of gradients and weights, and which part of them is whose.
#pragma once

#include <vector>

#include "parallel/groups.h"
#include "parallel/param.h"
#include "parallel/squared_norm.h"

namespace hanok {

/// A stretch of one parameter's local flattened values that this rank's optimizer owns.
struct ShardPiece {
  int param = 0;            // index into the table
  int64_t local_begin = 0;  // in the flattened local tensor
  int64_t size = 0;
  int64_t shard_begin = 0;  // in the rank's shard buffers
};

/// A parameter in the flat buffers.
struct GradPlace {
  int param = 0;  // index into the table
  int64_t begin = 0, size = 0;
};

/// Parameters that are summed in one operation: [begin, begin + parts * piece) of the buffers, of which rank i of the
/// group owns the i-th piece.
struct GradBucket {
  bool experts = false;    // over the expert_grad group, else over grad
  bool is_shared = false;  // ranks of tp or another stage hold gradients that are added first
  int parts = 1, index = 0;
  int64_t begin = 0, piece = 0;
  int64_t shard_begin = 0;  // of the own piece
  std::vector<GradPlace> places;
  int64_t size() const { return parts * piece; }
  int64_t own_begin() const { return begin + index * piece; }
};

/// Shared buckets first, then those of the table's order: gradients are ready from the last one on.
struct GradLayout {
  std::vector<GradBucket> buckets;
  int64_t size = 0, shard_size = 0;
};

constexpr int64_t kBucketElements = int64_t{1} << 26;
/// Of one temporary buffer in which gradients are added that ranks of tp share.
constexpr int64_t kSumElements = int64_t{1} << 24;

/// Elements from one parameter to the next: vectorised kernels work on any of them.
constexpr int64_t kGradAlignment = 32;
inline int64_t grad_aligned(int64_t size) {
  return (size + kGradAlignment - 1) / kGradAlignment * kGradAlignment;
}

/// Parameters lie end to end in buckets of about `bucket_elements` (one that is larger has a bucket of its own), each
/// from a multiple of 32 elements on; pieces are multiples of 32 too. Pure; the same for every rank of a grad group but
/// for `index`.
GradLayout lay_out_gradients(const ParamTable& params, const Groups& groups, int64_t bucket_elements);
/// The own piece of every bucket, parameter by parameter.
std::vector<ShardPiece> pieces_of(const GradLayout& layout);
/// What lies between parameters and after the last one of a bucket.
std::vector<Stretch> gaps_of(const GradLayout& layout);

}  // namespace hanok
