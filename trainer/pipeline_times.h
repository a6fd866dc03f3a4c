// What a pipeline did in a step, as it was measured.
#pragma once

#include <string>

#include "model/vlm.h"
#include "parallel/pass_times.h"

namespace hanok {

/// Says what ranks work, and makes the lists of the zero-bubble V anew for it; they hold no more memory than those that
/// they replace. Micro-batches keep their order in every piece, so that sums keep theirs; where two pieces of a rank
/// add to one table (a tied head) they would not, and the lists stay. The step is over; collective over
/// groups.control.
void fit_pipeline(const PassTimes& times, Vlm& model);

/// The passes of a step on the ranks with dp, cp and tp 0 in Chrome's trace format (ui.perfetto.dev opens it), a row a
/// rank, which wall clocks set beside each other. `end`: of the step, which is over. Rank 0 writes it to `path`; one
/// that cannot be written is a WARNING. Collective over groups.control.
void write_pipeline_diagram(const std::string& path, const PassTimes& times, const Moment& end, const Vlm& model);

}  // namespace hanok
