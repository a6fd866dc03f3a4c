// Stretches of a flattened tensor in few numbers: a matrix cut by columns has one per row, but one line says them all.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "dataio/tensor_store.h"

namespace hanok {

/// `count` stretches of `size` elements, their beginnings `stride` >= size apart.
struct StridedRun {
  int64_t begin = 0, size = 0, stride = 0, count = 0;
};

/// The same elements in the same order; empty runs vanish.
std::vector<StridedRun> compress_runs(const std::vector<StoredRun>& runs);

/// Elements of valid runs (0 <= begin, 1 <= size <= stride, 1 <= count, end within `bound`), or -1 if any is invalid.
int64_t count_elements(const std::vector<StridedRun>& runs, int64_t bound);

/// Finds every wanted element in one of the pieces. Calls copy(piece, from, to, size): `from` counts the elements of
/// the piece in the order of its runs, `to` those of `wanted`. O(n log p) for n stretches in p runs; memory O(p),
/// nothing is expanded. Returns the first wanted global index that no piece holds, or -1. Runs of pieces must be valid.
using CopyRun = std::function<void(size_t piece, int64_t from, int64_t to, int64_t size)>;
int64_t match_runs(const std::vector<const std::vector<StridedRun>*>& pieces,
                   const std::vector<StoredRun>& wanted,
                   const CopyRun& copy);

}  // namespace hanok
