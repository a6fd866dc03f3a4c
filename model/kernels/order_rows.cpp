#include "model/kernels/order_rows.h"

#include <vector>

#include "base/cuda/call.h"
#include "base/error.h"
#include "model/kernels/order_rows_cuda.h"

namespace hanok {
namespace {

RowOrder room(int64_t rows, int64_t choices, int64_t experts, const Tensor& like) {
  const auto options = like.options().requires_grad(false);
  return {at::empty({rows * choices}, options),
          at::empty({rows, choices}, options),
          at::empty({experts}, options.dtype(at::kInt))};
}

/// key(i) of the slots 0, 1, ... in [0, keys]: equal ones keep their order; those of `keys` are nowhere.
template <class Key>
void order_on_cpu(RowOrder& out, int64_t keys, const Key& key) {
  const int64_t slots = out.slot_N.size(0);
  std::vector<int64_t> next(keys + 2, 0);
  for (int64_t i = 0; i < slots; ++i) ++next[key(i) + 1];
  for (int64_t k = 0; k <= keys; ++k) next[k + 1] += next[k];
  int* ends = out.ends_E.mutable_data_ptr<int>();
  for (int64_t k = 0; k < keys; ++k) ends[k] = static_cast<int>(next[k + 1]);
  int64_t *slot = out.slot_N.mutable_data_ptr<int64_t>(), *place = out.place_TK.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < slots; ++i) {
    const int64_t k = key(i), at = next[k]++;
    slot[at] = i;
    place[i] = k < keys ? at : -1;
  }
}

}  // namespace

RowOrder order_by_expert(const Tensor& index_TK, const Tensor& row_T, int64_t experts) {
  HANOK_REQUIRE(
      index_TK.dim() == 2 && index_TK.is_contiguous() &&
          (!row_T.defined() || (row_T.is_contiguous() && row_T.sizes() == at::IntArrayRef{index_TK.size(0)})) &&
          index_TK.numel() < (int64_t{1} << 31),
      kShape)
      << "order_by_expert: got choices " << index_TK.sizes() << " and rows "
      << (row_T.defined() ? row_T.sizes() : at::IntArrayRef{}) << ", expected [T, K] and [T], below 2^31 choices";
  RowOrder out = room(index_TK.size(0), index_TK.size(1), experts, index_TK);
  const int64_t choices = index_TK.size(1);
  const int64_t *index = index_TK.const_data_ptr<int64_t>(),
                *row = row_T.defined() ? row_T.const_data_ptr<int64_t>() : nullptr;
  if (index_TK.is_cpu()) {
    order_on_cpu(
        out, experts, [=](int64_t i) { return index[i] < 0 || (row && row[i / choices] < 0) ? experts : index[i]; });
    return out;
  }
  HANOK_REQUIRE(experts <= kMostOrderedExperts, kShape)
      << "experts: got " << experts << ", expected at most " << kMostOrderedExperts
      << "; the GPU kernel that sorts tokens; train on a CPU, or with fewer experts";
  const Tensor counts =
      at::empty({order_blocks(index_TK.numel(), experts), experts + 1}, index_TK.options().dtype(at::kInt));
  launch(OrderByExpert{.stream = cuda_stream(index_TK, "order_by_expert"),
                       .index = index,
                       .row = row,
                       .counts = counts.mutable_data_ptr<int>(),
                       .slot = out.slot_N.mutable_data_ptr<int64_t>(),
                       .place = out.place_TK.mutable_data_ptr<int64_t>(),
                       .ends = out.ends_E.mutable_data_ptr<int>(),
                       .slots = index_TK.numel(),
                       .choices = choices,
                       .experts = experts});
  return out;
}

}  // namespace hanok
