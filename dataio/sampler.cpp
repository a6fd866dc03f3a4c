#include "dataio/sampler.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace hanok {
namespace {

/// source: splitmix64 (Steele, Lea, Flood 2014)
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t key_of(uint64_t seed, uint64_t purpose, uint64_t a, uint64_t b) {
  return mix(mix(mix(mix(seed) ^ purpose) ^ a) ^ b);
}

constexpr uint64_t kOrderOfSamples = 1, kOrderOfRows = 2;

/// Bins in the order they were opened, with the room left in each: a segment tree of maxima finds the first that fits.
class OpenBins {
 public:
  OpenBins(size_t count, int64_t capacity) : leaves_(std::bit_ceil(std::max<size_t>(count, 1))) {
    room_.assign(2 * leaves_, capacity);
  }
  size_t take_first(int64_t length) {
    assert(room_[1] >= length);
    size_t node = 1;
    while (node < leaves_) node = room_[2 * node] >= length ? 2 * node : 2 * node + 1;
    room_[node] -= length;
    const size_t bin = node - leaves_;
    for (node /= 2; node > 0; node /= 2) room_[node] = std::max(room_[2 * node], room_[2 * node + 1]);
    return bin;
  }

 private:
  size_t leaves_;
  std::vector<int64_t> room_;
};

}  // namespace

int64_t permuted(uint64_t key, int64_t index, int64_t size) {
  assert(index >= 0 && index < size);
  // Two halves of equal width hold every number below `size`; what falls outside walks on along its cycle.
  const int half_bits = std::max(1, (static_cast<int>(std::bit_width(static_cast<uint64_t>(size - 1))) + 1) / 2);
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  uint64_t x = static_cast<uint64_t>(index);
  do {
    uint64_t left = x >> half_bits, right = x & mask;
    for (uint64_t round = 0; round < 6; ++round) {
      const uint64_t next = left ^ (mix(key ^ mix(right | (round << 56))) & mask);
      left = right;
      right = next;
    }
    x = left << half_bits | right;
  } while (x >= static_cast<uint64_t>(size));
  return static_cast<int64_t>(x);
}

std::vector<std::vector<int>> first_fit_decreasing(const std::vector<int64_t>& lengths, int64_t capacity) {
  std::vector<int> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return lengths[a] > lengths[b]; });
  OpenBins bins(lengths.size(), capacity);
  std::vector<std::vector<int>> groups;
  for (int i : order) {
    HANOK_REQUIRE(lengths[i] <= capacity, kShape)
        << "length: got " << lengths[i] << ", expected at most the row's " << capacity << "; item " << i;
    const size_t bin = bins.take_first(lengths[i]);
    if (bin == groups.size()) groups.emplace_back();
    groups[bin].push_back(i);
  }
  return groups;
}

Sampler::Sampler(std::vector<Source> sources, int64_t seq_len, int64_t rows_per_step, int64_t window, uint64_t seed)
    : sources_(std::move(sources)), seq_len_(seq_len), rows_per_step_(rows_per_step), seed_(seed) {
  HANOK_REQUIRE(!sources_.empty(), kConfig) << "mixture: got no dataset, expected at least one; see data.sets";
  HANOK_REQUIRE(seq_len > 0 && rows_per_step > 0 && window > 0, kConfig)
      << "sampler: got seq_len " << seq_len << ", rows_per_step " << rows_per_step << ", window " << window
      << ", expected all above 0";
  double largest_share = 0, total_share = 0;
  int64_t total_samples = 0;
  for (size_t s = 0; s < sources_.size(); ++s) {
    const Source& source = sources_[s];
    assert(source.lengths.size() == source.indices.size());
    HANOK_REQUIRE(!source.lengths.empty(), kConfig)
        << "dataset " << s
        << " of the mixture: got no usable sample, expected at least one; take it out, or raise seq_len";
    HANOK_REQUIRE(source.share > 0 && std::isfinite(source.share), kConfig)
        << "mixture share of dataset " << s << ": got " << source.share << ", expected above 0";
    largest_share = std::max(largest_share, source.share);
    total_samples += static_cast<int64_t>(source.lengths.size());
  }
  // The sum of the shares as they are may be infinite. A power of two changes no bit of what comes out.
  const double unit = std::exp2(std::ilogb(largest_share));
  for (const Source& source : sources_) total_share += source.share / unit;
  for (Source& source : sources_) source.share = source.share / unit / total_share;
  // A window beyond one pass would put a sample next to its own repetition.
  window_ = std::min(window, total_samples);
}

int64_t Sampler::begin_in_source(size_t source, int64_t window) const {
  // long double: the product stays exact to one sample far beyond any run. With one source it is the integer itself.
  return std::llroundl(static_cast<long double>(sources_[source].share) * window_ * window);
}

std::vector<Row> Sampler::window_rows(int64_t window) const {
  std::vector<SampleRef> refs;
  std::vector<int64_t> lengths;
  for (size_t s = 0; s < sources_.size(); ++s) {
    const Source& source = sources_[s];
    const auto size = static_cast<int64_t>(source.lengths.size());
    for (int64_t k = begin_in_source(s, window), end = begin_in_source(s, window + 1); k < end; ++k) {
      const int64_t i = permuted(key_of(seed_, kOrderOfSamples, s, k / size), k % size, size);
      refs.push_back({static_cast<int>(s), source.indices[i]});
      lengths.push_back(source.lengths[i]);
    }
  }
  const auto groups = first_fit_decreasing(lengths, seq_len_);
  // First-fit-decreasing yields rows of long samples first: their order is drawn anew, so that steps are alike.
  const auto num_rows = static_cast<int64_t>(groups.size());
  std::vector<Row> rows(groups.size());
  for (int64_t r = 0; r < num_rows; ++r) {
    Row& row = rows[permuted(key_of(seed_, kOrderOfRows, window, 0), r, num_rows)];
    for (int i : groups[r]) row.push_back(refs[i]);
  }
  return rows;
}

std::vector<Row> Sampler::next(Cursor& cursor) const {
  std::vector<Row> step;
  while (static_cast<int64_t>(step.size()) < rows_per_step_) {
    std::vector<Row> rows = window_rows(cursor.window);
    const auto num_rows = static_cast<int64_t>(rows.size());
    while (cursor.row < num_rows && static_cast<int64_t>(step.size()) < rows_per_step_) {
      step.push_back(std::move(rows[cursor.row++]));
    }
    if (cursor.row >= num_rows) {
      ++cursor.window;
      cursor.row = 0;
    }
  }
  ++cursor.step;
  return step;
}

Cursor Sampler::at_step(int64_t step) const {
  Cursor cursor{.step = step, .window = 0, .row = step * rows_per_step_};
  for (;;) {
    const auto num_rows = static_cast<int64_t>(window_rows(cursor.window).size());
    if (cursor.row < num_rows) return cursor;
    cursor.row -= num_rows;
    ++cursor.window;
  }
}

int64_t Sampler::steps_for_epochs(double epochs) const {
  HANOK_REQUIRE(epochs > 0, kConfig) << "epochs: got " << epochs << ", expected above 0";
  double tokens = 0, tokens_per_draw = 0;
  for (const Source& source : sources_) {
    const double sum = std::accumulate(source.lengths.begin(), source.lengths.end(), 0.0);
    tokens += sum;
    tokens_per_draw += source.share * sum / static_cast<double>(source.lengths.size());
  }
  const double draws = epochs * tokens / tokens_per_draw;
  // Windows are alike: beyond a thousand of them, their mean tells the rest to a fraction of a row.
  constexpr double kCounted = 1024;
  const auto windows = static_cast<int64_t>(std::clamp(std::ceil(draws / window_ - 1e-9), 1.0, kCounted));
  int64_t rows = 0, counted_draws = 0;
  for (int64_t w = 0; w < windows; ++w) rows += static_cast<int64_t>(window_rows(w).size());
  for (size_t s = 0; s < sources_.size(); ++s) counted_draws += begin_in_source(s, windows);
  const double steps = static_cast<double>(rows) * draws / static_cast<double>(counted_draws) / rows_per_step_;
  HANOK_REQUIRE(steps < 0x1p62, kConfig) << "epochs: got " << epochs << ", which are " << steps
                                         << " steps, expected fewer than 2^62; give fewer";
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(steps - 1e-9)));
}

}  // namespace hanok
