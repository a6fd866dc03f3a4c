#include "parallel/grad_layout.h"

#include <algorithm>
#include <optional>

namespace hanok {
namespace {

/// Cuts parameters that come one after the other into buckets.
class Cutter {
 public:
  Cutter(const Groups& groups, int64_t bucket_elements) : groups_(groups), limit_(bucket_elements) {}

  void add(int param, int64_t size, bool experts, bool shared) {
    std::optional<size_t>& open = open_[shared][experts];
    if (open && filled(buckets_[*open]) + size > limit_) open.reset();
    if (!open) {
      const Comm& comm = experts ? *groups_.expert_grad : *groups_.grad;
      open = buckets_.size();
      buckets_.push_back({.experts = experts, .is_shared = shared, .parts = comm.size(), .index = comm.rank()});
    }
    GradBucket& bucket = buckets_[*open];
    bucket.places.push_back({.param = param, .begin = grad_aligned(filled(bucket)), .size = size});
  }

  GradLayout layout() && {
    // Dense and expert buckets are open at a time: they come in the order of their first parameters.
    std::stable_partition(buckets_.begin(), buckets_.end(), [](const GradBucket& bucket) { return bucket.is_shared; });
    GradLayout layout;
    for (GradBucket& bucket : buckets_) {
      bucket.begin = layout.size;
      bucket.piece = grad_aligned((filled(bucket) + bucket.parts - 1) / bucket.parts);
      bucket.shard_begin = layout.shard_size;
      for (GradPlace& place : bucket.places) place.begin += bucket.begin;
      layout.size += bucket.size();
      layout.shard_size += bucket.piece;
    }
    layout.buckets = std::move(buckets_);
    return layout;
  }

 private:
  static int64_t filled(const GradBucket& bucket) {
    return bucket.places.empty() ? 0 : bucket.places.back().begin + bucket.places.back().size;
  }

  const Groups& groups_;
  int64_t limit_;
  std::vector<GradBucket> buckets_;  // places counted from the bucket's begin
  std::optional<size_t> open_[2][2];
};

}  // namespace

GradLayout lay_out_gradients(const ParamTable& params, const Groups& groups, int64_t bucket_elements) {
  Cutter cutter(groups, bucket_elements);
  for (size_t i = 0; i < params.size(); ++i) {
    if (!params[i].trainable) continue;
    const ParamSpec& spec = params[i].spec;
    cutter.add(static_cast<int>(i),
               params[i].value.numel(),
               is_of_experts(spec),
               spec.twin >= 0 || is_shared_over_tp(spec, groups));
  }
  return std::move(cutter).layout();
}

std::vector<ShardPiece> pieces_of(const GradLayout& layout) {
  std::vector<ShardPiece> pieces;
  for (const GradBucket& bucket : layout.buckets) {
    const int64_t begin = bucket.own_begin(), end = begin + bucket.piece;
    for (const GradPlace& place : bucket.places) {
      const int64_t first = std::max(begin, place.begin), last = std::min(end, place.begin + place.size);
      if (first >= last) continue;
      pieces.push_back({.param = place.param,
                        .local_begin = first - place.begin,
                        .size = last - first,
                        .shard_begin = bucket.shard_begin + first - begin});
    }
  }
  return pieces;
}

std::vector<Stretch> gaps_of(const GradLayout& layout) {
  std::vector<Stretch> gaps;
  int64_t end = 0;  // of what is accounted for
  const auto account = [&](int64_t begin, int64_t size) {
    if (begin > end) gaps.push_back({end, begin - end});
    end = begin + size;
  };
  for (const GradBucket& bucket : layout.buckets)
    for (const GradPlace& place : bucket.places) account(place.begin, place.size);
  account(layout.size, 0);
  return gaps;
}

}  // namespace hanok
