#include "dataio/store/strided_runs.h"

#include <algorithm>
#include <queue>
#include <utility>

namespace hanok {

namespace {

struct Wanted {
  int64_t begin, end;  // global
  int64_t to;
};

// The next stretch of one strided run.
struct Cursor {
  int64_t begin, size, stride;
  int64_t left;  // stretches after this one
  int64_t from;
  size_t piece;
};
struct LaterFirst {
  bool operator()(const Cursor& a, const Cursor& b) const {
    return std::pair(a.begin, a.piece) > std::pair(b.begin, b.piece);
  }
};
using Cursors = std::priority_queue<Cursor, std::vector<Cursor>, LaterFirst>;

std::vector<Wanted> sorted_by_begin(const std::vector<StoredRun>& runs) {
  std::vector<Wanted> wanted;
  int64_t to = 0;
  for (const StoredRun& run : runs) {
    if (run.size > 0) wanted.push_back({run.global_begin, run.global_begin + run.size, to});
    to += run.size;
  }
  std::sort(wanted.begin(), wanted.end(), [](const Wanted& a, const Wanted& b) { return a.begin < b.begin; });
  return wanted;
}

// Every strided run that reaches into [low, high), at its first stretch that does.
Cursors cursors_within(const std::vector<const std::vector<StridedRun>*>& pieces, int64_t low, int64_t high) {
  std::vector<Cursor> cursors;
  for (size_t piece = 0; piece < pieces.size(); ++piece) {
    int64_t from = 0;
    for (const StridedRun& run : *pieces[piece]) {
      const int64_t before = low - run.begin - run.size;  // >= 0: the first stretch ends at or before `low`
      const int64_t skip = before < 0 ? 0 : before / run.stride + 1;
      if (skip < run.count && run.begin + skip * run.stride < high) {
        cursors.push_back(
            {run.begin + skip * run.stride, run.size, run.stride, run.count - 1 - skip, from + skip * run.size, piece});
      }
      from += run.size * run.count;
    }
  }
  return Cursors(LaterFirst{}, std::move(cursors));
}

// The first wanted index in [begin, end), or -1. Runs before `first` end at or before `begin`.
int64_t first_wanted_within(const std::vector<Wanted>& wanted, size_t first, int64_t begin, int64_t end) {
  for (size_t i = first; i < wanted.size() && wanted[i].begin < end; ++i) {
    const int64_t at = std::max(wanted[i].begin, begin);
    if (at < std::min(wanted[i].end, end)) return at;
  }
  return -1;
}

}  // namespace

std::vector<StridedRun> compress_runs(const std::vector<StoredRun>& runs) {
  std::vector<StoredRun> joined;
  for (const StoredRun& run : runs) {
    if (run.size == 0) continue;
    if (!joined.empty() && joined.back().global_begin + joined.back().size == run.global_begin) {
      joined.back().size += run.size;
    } else {
      joined.push_back(run);
    }
  }
  std::vector<StridedRun> out;
  for (const StoredRun& run : joined) {
    if (!out.empty() && out.back().size == run.size) {
      StridedRun& last = out.back();
      const int64_t step = run.global_begin - (last.begin + (last.count - 1) * last.stride);
      if (last.count == 1 ? step > run.size : step == last.stride) {
        last.stride = step;
        ++last.count;
        continue;
      }
    }
    out.push_back({run.global_begin, run.size, run.size, 1});
  }
  return out;
}

int64_t count_elements(const std::vector<StridedRun>& runs, int64_t bound) {
  int64_t total = 0;
  for (const StridedRun& run : runs) {
    int64_t end = 0, elements = 0;
    const bool valid = run.begin >= 0 && run.size >= 1 && run.stride >= run.size && run.count >= 1 &&
                       !__builtin_mul_overflow(run.stride, run.count - 1, &end) &&
                       !__builtin_add_overflow(end, run.begin, &end) && !__builtin_add_overflow(end, run.size, &end) &&
                       end <= bound && !__builtin_mul_overflow(run.size, run.count, &elements) &&
                       !__builtin_add_overflow(total, elements, &total);
    if (!valid) return -1;
  }
  return total;
}

int64_t match_runs(const std::vector<const std::vector<StridedRun>*>& pieces,
                   const std::vector<StoredRun>& wanted_runs,
                   const CopyRun& copy) {
  const std::vector<Wanted> wanted = sorted_by_begin(wanted_runs);
  if (wanted.empty()) return -1;
  int64_t high = 0;
  for (const Wanted& want : wanted) high = std::max(high, want.end);
  Cursors cursors = cursors_within(pieces, wanted.front().begin, high);

  size_t first = 0;                        // wanted runs before it are done
  int64_t covered = wanted.front().begin;  // all that is wanted below it has been copied
  while (!cursors.empty() && first < wanted.size()) {
    Cursor cursor = cursors.top();
    cursors.pop();
    const int64_t end = cursor.begin + cursor.size;
    if (end > covered) {
      const int64_t begin = std::max(cursor.begin, covered);
      const int64_t missing = first_wanted_within(wanted, first, covered, begin);
      if (missing >= 0) return missing;
      for (size_t i = first; i < wanted.size() && wanted[i].begin < end; ++i) {
        const int64_t low = std::max(begin, wanted[i].begin);
        const int64_t size = std::min(end, wanted[i].end) - low;
        if (size > 0) copy(cursor.piece, cursor.from + low - cursor.begin, wanted[i].to + low - wanted[i].begin, size);
      }
      covered = end;
      while (first < wanted.size() && wanted[first].end <= covered) ++first;
    }
    if (cursor.left > 0 && cursor.begin + cursor.stride < high) {
      cursors.push({cursor.begin + cursor.stride,
                    cursor.size,
                    cursor.stride,
                    cursor.left - 1,
                    cursor.from + cursor.size,
                    cursor.piece});
    }
  }
  return first_wanted_within(wanted, first, covered, high);
}

}  // namespace hanok
