#include "parallel/kept.h"

#include <utility>

#include "base/error.h"

namespace hanok {
namespace {

// Of the block that runs on this thread; null: nothing is recorded, nothing taken.
thread_local RecordResults* recording = nullptr;
thread_local TakeResults* taking = nullptr;

Tensor shape_of(const Tensor& x) {
  return x.is_meta() ? x : at::empty(x.sizes(), x.options().device(at::kMeta));
}

Tensor kept(const std::function<Tensor()>& compute, bool is_part) {
  Tensor known = taking ? taking->next() : Tensor();
  if (known.defined()) return known;
  Tensor result = compute();
  if (recording) recording->add(result, is_part);
  return result;
}

}  // namespace

Tensor kept(const std::function<Tensor()>& compute) {
  return kept(compute, /*is_part=*/false);
}

Tensor kept_part(const std::function<Tensor()>& compute) {
  return kept(compute, /*is_part=*/true);
}

std::vector<Tensor> kept_attention(const std::function<std::vector<Tensor>()>& compute) {
  std::vector<Tensor> known = taking ? taking->next_all() : std::vector<Tensor>{};
  if (!known.empty()) return known;
  std::vector<Tensor> results = compute();
  if (recording) recording->add_attention(results);
  return results;
}

RecordResults::RecordResults(Keep keep) : keep_(keep) {
  recording = this;
}

RecordResults::~RecordResults() {
  recording = nullptr;
}

void RecordResults::add(const Tensor& result, bool is_part) {
  const bool is_kept = keep_ == Keep::kResults;
  // A handle of its own: autograd marks the other.
  entries_.push_back({is_kept && !is_part ? result.detach() : shape_of(result), is_part, is_kept});
}

void RecordResults::add_attention(const std::vector<Tensor>& results) {
  if (keep_ == Keep::kInput) return entries_.push_back({});
  const auto count = static_cast<int64_t>(results.size());
  entries_.push_back({.result = at::empty({count}, at::TensorOptions().device(at::kMeta)), .is_kept = true});
  for (const Tensor& result : results) entries_.push_back({.result = result.detach(), .is_kept = true});
}

KeptResults RecordResults::finish(bool last_is_unread) {
  size_t first_unread = entries_.size();
  if (last_is_unread && first_unread > 0) --first_unread;
  while (last_is_unread && first_unread > 0 && entries_[first_unread - 1].is_part) --first_unread;
  KeptResults results;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    results.push_back(i >= first_unread ? shape_of(entry.result) : entry.is_kept ? entry.result : Tensor());
  }
  return results;
}

TakeResults::TakeResults(KeptResults& results, at::Device device) : results_(results), device_(device) {
  taking = this;
}

TakeResults::~TakeResults() {
  taking = nullptr;
}

Tensor TakeResults::next_entry() {
  HANOK_REQUIRE(next_ < results_.size(), kShape)
      << "recomputation: got more operations than the first run of a layer had, expected " << results_.size()
      << "; a layer must do the same in both runs";
  return std::exchange(results_[next_++], Tensor());
}

Tensor TakeResults::next() {
  const Tensor result = next_entry();
  if (!result.defined() || !result.is_meta()) return result;
  return at::empty(result.sizes(), result.options().device(device_));
}

std::vector<Tensor> TakeResults::next_all() {
  const Tensor count = next_entry();
  std::vector<Tensor> results(count.defined() ? static_cast<size_t>(count.numel()) : 0);
  for (Tensor& result : results) result = next();
  return results;
}

}  // namespace hanok
