// Which samples a step sees: a pure function of (seed, step, mixture). Nothing here knows of ranks, threads or time.
//
// The stream of a dataset visits each of its samples once per epoch, in an order that is a keyed permutation computed
// per element (no table). A window is `window` consecutive samples of the mixture; its share of each dataset is a
// rounded running total, so any window is known without its predecessors. The samples of a window are packed into rows
// first-fit-decreasing and the rows shuffled; the rows of all windows, end to end, are dealt to steps in order. How
// many rows a window gives depends on its lengths, so the place of a step is two integers (window, row). A checkpoint
// keeps them: resuming costs the same at any step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace hanok {

struct SampleRef {
  int dataset = 0;
  int64_t index = 0;
  friend bool operator==(const SampleRef&, const SampleRef&) = default;
};
using Row = std::vector<SampleRef>;  // samples laid end to end

/// Where the next step begins.
struct Cursor {
  int64_t step = 0, window = 0, row = 0;
  friend bool operator==(const Cursor&, const Cursor&) = default;
};

/// Position of `index` in a keyed permutation of [0, size): a Feistel network with cycle walking.
int64_t permuted(uint64_t key, int64_t index, int64_t size);

/// First-fit-decreasing, stable: equal lengths keep their order. -> groups of positions, each of total length <=
/// capacity. lengths must be <= capacity. O(n log n).
std::vector<std::vector<int>> first_fit_decreasing(const std::vector<int64_t>& lengths, int64_t capacity);

class Sampler {
 public:
  struct Source {
    std::vector<int64_t> lengths;  // tokens of each usable sample
    std::vector<int64_t> indices;  // their numbers in the dataset
    double share = 1;              // of the samples of a window
  };
  /// A window is at most one pass over all samples: a larger `window` is cut to that.
  /// errors: kConfig if a source is empty or a share is not positive
  Sampler(std::vector<Source> sources, int64_t seq_len, int64_t rows_per_step, int64_t window, uint64_t seed);
  /// The rows of the step at `cursor`; moves the cursor to the next step.
  std::vector<Row> next(Cursor& cursor) const;
  /// The cursor of any step, found by counting rows from the start (no data is read; about a millisecond a window).
  Cursor at_step(int64_t step) const;
  /// Steps in which the samples were seen `epochs` times: as many tokens as `epochs` passes over all sources hold.
  int64_t steps_for_epochs(double epochs) const;
  int64_t rows_per_step() const { return rows_per_step_; }

 private:
  int64_t begin_in_source(size_t source, int64_t window) const;  // samples of `source` that earlier windows took
  std::vector<Row> window_rows(int64_t window) const;
  std::vector<Source> sources_;
  int64_t seq_len_, rows_per_step_, window_;
  uint64_t seed_;
};

}  // namespace hanok
