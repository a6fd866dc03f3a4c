#include "trainer/prediction.h"

#include <algorithm>

#include "base/error.h"
#include "trainer/progress.h"

namespace hanok {
namespace {

/// The first steps of a process choose kernels and take memory from the driver.
double typical(std::vector<double> seconds) {
  constexpr size_t kWarmUp = 2;
  if (seconds.size() > kWarmUp) seconds.erase(seconds.begin(), seconds.begin() + kWarmUp);
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

std::string error_text(double planned, double measured) {
  return printed("%+.1f %%", 100 * (planned / measured - 1));
}

}  // namespace

std::string text_of(const StageComparison& c) {
  std::string text = concat("stage ",
                            c.stage,
                            " beside its plan: step ",
                            printed("%.3f s", c.step_s),
                            printed(", planned %.3f s (", c.step_s_planned),
                            error_text(c.step_s_planned, c.step_s),
                            "); most memory by rank");
  for (size_t rank = 0; rank < c.peak_gib.size(); ++rank)
    text += concat(rank == 0 ? " " : ", ",
                   printed("%.2f", c.peak_gib[rank]),
                   printed(" (planned %.2f, ", c.peak_gib_planned[rank]),
                   error_text(c.peak_gib_planned[rank], c.peak_gib[rank]),
                   ")");
  return text + " GiB";
}

std::optional<StageComparison> compare_with_plan(const StageMeasures& measures,
                                                 const std::optional<Prediction>& prediction,
                                                 double own_peak_gib,
                                                 const Groups& groups) {
  // Ranks may be of different kinds, and one without a prediction must not leave the others waiting.
  const bool known = prediction && !measures.step_s.empty();
  const double planned = known ? prediction->peak_gib.at(groups.at.pp) : 0;
  const Tensor own = at::tensor({known ? 1.0 : 0.0, own_peak_gib, planned}, at::kDouble);
  const int ranks = groups.control->size();
  Tensor all = at::empty({ranks * own.size(0)}, at::kDouble);
  groups.control->all_gather(all, own);
  const auto* numbers = all.const_data_ptr<double>();
  StageComparison out;
  for (int rank = 0; rank < ranks; ++rank, numbers += own.size(0)) {
    if (numbers[0] == 0) return std::nullopt;
    out.peak_gib.push_back(numbers[1]);
    out.peak_gib_planned.push_back(numbers[2]);
  }
  out.step_s = typical(measures.step_s);
  out.step_s_planned = prediction->step_s;
  const auto steps = static_cast<double>(measures.step_s.size());
  out.tokens_per_s = measures.work.tokens / steps / out.step_s;
  return out;
}

}  // namespace hanok
