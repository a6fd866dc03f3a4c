#include "parallel/redistribute.h"

#include "base/error.h"
#include "parallel/collectives.h"

namespace hanok {

namespace {
std::string_view name(Layout layout) {
  switch (layout) {
    case Layout::kFull: return "full";
    case Layout::kSequence: return "sequence";
    case Layout::kHeads: return "heads";
    case Layout::kPartial: return "partial";
  }
  return "";
}
}  // namespace

Tensor redistribute(const Tensor& x, Layout from, Layout to, const Groups& groups) {
  const std::shared_ptr<Comm>& tp = groups.tp;
  if (tp->size() == 1 || from == to) return x;
  const bool cut = groups.sequence_parallel;
  if (from == Layout::kSequence && to == Layout::kFull) {
    return cut ? gather_and_reduce_scatter(x, tp) : copy_to_group(x, tp);
  }
  if (from == Layout::kPartial && to == Layout::kSequence) {
    return cut ? reduce_scatter_and_gather(x, tp) : sum_over_group(x, tp);
  }
  if (from == Layout::kPartial && to == Layout::kFull) return sum_over_group(x, tp);
  if (from == Layout::kFull && to == Layout::kSequence) return cut ? split_to_group(x, tp) : x;
  HANOK_FAIL(kShape) << "redistribute: got " << name(from) << " -> " << name(to)
                     << ", expected sequence -> full, partial -> sequence, partial -> full or full -> sequence; group "
                     << tp->name() << "; correct the layouts of the plan's rule";
}

RowRange sequence_range(int64_t rows, const Groups& groups) {
  const int parts = groups.tp->size();
  if (parts == 1 || !groups.sequence_parallel) return {0, rows};
  HANOK_REQUIRE(rows % parts == 0, kShape)
      << "sequence parallelism: got " << rows << " rows, expected a multiple of tp = " << parts << "; group "
      << groups.tp->name() << "; pad the rows";
  return {rows / parts * groups.tp->rank(), rows / parts};
}

}  // namespace hanok
