#include "model/row_cut.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "base/error.h"

namespace hanok {
namespace {

/// Pairs (row, row of the same sample not after it) of the rows [begin, end): a row costs its position in its sample.
class PairCount {
 public:
  explicit PairCount(const Tensor& row_starts)
      : starts_(row_starts.const_data_ptr<int32_t>(), row_starts.const_data_ptr<int32_t>() + row_starts.size(0)) {}
  double of(const RowInterval& interval) const {
    double sum = 0;
    for (auto s = std::upper_bound(starts_.begin(), starts_.end(), interval.begin) - starts_.begin() - 1;
         s + 1 < static_cast<int64_t>(starts_.size()) && starts_[s] < interval.end;
         ++s) {
      const auto first = static_cast<double>(std::max<int64_t>(interval.begin, starts_[s]) - starts_[s]);
      const auto last = static_cast<double>(std::min<int64_t>(interval.end, starts_[s + 1]) - starts_[s]);
      if (last > first) sum += (last * (last + 1) - first * (first + 1)) / 2;
    }
    return sum;
  }

 private:
  std::vector<int32_t> starts_;
};

/// `per_rank` chunks of each rank, dealt out. The first rows % per_rank chunks of every rank are one row longer.
class Deal {
 public:
  Deal(const PairCount& pairs, int64_t rows_per_rank, int parts, int64_t per_rank) : parts_(parts) {
    const int64_t small = rows_per_rank / per_rank, long_chunks = rows_per_rank % per_rank * parts;
    int64_t begin = 0;
    for (int64_t i = 0; i < per_rank * parts; ++i) {
      const bool is_long = i < long_chunks;
      const RowInterval rows{begin, begin + small + is_long};
      chunks_.push_back({rows, pairs.of(rows), is_long});
      begin = rows.end;
    }
    quota_[0] = per_rank - rows_per_rank % per_rank;
    quota_[1] = rows_per_rank % per_rank;
    deal();
    even_out();
  }

  double imbalance() const {
    const double mean = std::accumulate(load_.begin(), load_.end(), 0.0) / parts_;
    return mean == 0 ? 0 : *std::max_element(load_.begin(), load_.end()) / mean - 1;
  }

  RowCut cut() const {
    RowCut out;
    out.of_rank.resize(parts_);
    for (const Chunk& chunk : chunks_) {
      std::vector<RowInterval>& own = out.of_rank[chunk.rank];
      if (chunk.rows.size() == 0) continue;
      if (!own.empty() && own.back().end == chunk.rows.begin) {
        own.back().end = chunk.rows.end;
      } else {
        own.push_back(chunk.rows);
      }
    }
    return out;
  }

 private:
  struct Chunk {
    RowInterval rows;
    double pairs;
    bool is_long;
    int rank = 0;
  };

  /// The costliest chunk first, to the rank that has least and still takes chunks of this length.
  void deal() {
    load_.assign(parts_, 0.0);
    std::vector<int64_t> taken[2] = {std::vector<int64_t>(parts_), std::vector<int64_t>(parts_)};
    std::vector<size_t> order(chunks_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(
        order.begin(), order.end(), [&](size_t a, size_t b) { return chunks_[a].pairs > chunks_[b].pairs; });
    for (const size_t i : order) {
      Chunk& chunk = chunks_[i];
      std::vector<int64_t>& count = taken[chunk.is_long];
      int best = -1;
      for (int r = 0; r < parts_; ++r)
        if (count[r] < quota_[chunk.is_long] && (best < 0 || load_[r] < load_[best])) best = r;
      chunk.rank = best;
      load_[best] += chunk.pairs;
      ++count[best];
    }
  }

  /// Exchanges chunks between the busiest and the idlest rank while that helps.
  void even_out() {
    for (size_t turn = 0; turn < 2 * chunks_.size(); ++turn) {
      const auto most = std::max_element(load_.begin(), load_.end()) - load_.begin();
      const auto least = std::min_element(load_.begin(), load_.end()) - load_.begin();
      const double gap = load_[most] - load_[least];
      Chunk *from = nullptr, *to = nullptr;
      double best = gap;
      for (Chunk& a : chunks_) {
        if (a.rank != most) continue;
        for (Chunk& b : chunks_) {
          if (b.rank != least || b.is_long != a.is_long) continue;
          const double left = std::abs(gap - 2 * (a.pairs - b.pairs));
          if (left >= best) continue;
          best = left;
          from = &a;
          to = &b;
        }
      }
      if (from == nullptr) return;
      load_[most] += to->pairs - from->pairs;
      load_[least] += from->pairs - to->pairs;
      std::swap(from->rank, to->rank);
    }
  }

  int parts_;
  int64_t quota_[2];
  std::vector<Chunk> chunks_;
  std::vector<double> load_;
};

}  // namespace

Tensor RowCut::rows_of(int rank) const {
  std::vector<int64_t> rows;
  for (const RowInterval& interval : of_rank.at(rank))
    for (int64_t t = interval.begin; t < interval.end; ++t) rows.push_back(t);
  return at::tensor(rows, at::kLong);
}

RowCut::Places RowCut::places() const {
  int64_t total = 0;
  for (const auto& intervals : of_rank)
    for (const RowInterval& interval : intervals) total += interval.size();
  Places out{at::empty({total}, at::kLong), at::empty({total}, at::kLong)};
  auto* rank_of = out.rank_T.mutable_data_ptr<int64_t>();
  auto* row_of = out.row_T.mutable_data_ptr<int64_t>();
  for (size_t r = 0; r < of_rank.size(); ++r) {
    int64_t next = 0;
    for (const RowInterval& interval : of_rank[r]) {
      for (int64_t t = interval.begin; t < interval.end; ++t) {
        rank_of[t] = static_cast<int64_t>(r);
        row_of[t] = next++;
      }
    }
  }
  return out;
}

RowCut cut_rows(const Tensor& row_starts, int parts) {
  if (parts == 1) return {};
  constexpr double kEnough = 0.02;
  constexpr int64_t kMostChunks = 32;  // a rank; each becomes pieces of attention of its own
  const int64_t rows = row_starts[-1].item<int32_t>();
  HANOK_REQUIRE(rows % parts == 0, kShape) << "context parallelism: got " << rows
                                           << " rows, expected a multiple of cp = " << parts << "; pad the micro-batch";
  const PairCount pairs(row_starts);
  const int64_t per_rank = rows / parts;
  std::optional<Deal> best;
  for (int64_t chunks = 2; chunks <= kMostChunks; chunks *= 2) {
    if (best && chunks > per_rank) break;
    const Deal deal(pairs, per_rank, parts, chunks);
    if (!best || deal.imbalance() < best->imbalance()) best = deal;
    if (best->imbalance() <= kEnough) break;
  }
  return best->cut();
}

std::vector<double> pairs_by_rank(const Tensor& row_starts, const RowCut& cut) {
  const PairCount pairs(row_starts);
  std::vector<double> out;
  for (const auto& intervals : cut.of_rank) {
    out.push_back(0);
    for (const RowInterval& interval : intervals) out.back() += pairs.of(interval);
  }
  return out;
}

}  // namespace hanok
