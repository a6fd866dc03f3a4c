#include "trainer/pipeline_times.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/log.h"
#include "dataio/file_io.h"
#include "parallel/side_stream.h"
#include "trainer/agree.h"
#include "trainer/progress.h"

namespace hanok {
namespace {

/// In the mean over the ranks that hold a piece, the same everywhere.
std::vector<PassCosts> shared_costs(const PassTimes& times, const Vlm& model) {
  std::vector<PassCosts> costs = times.costs(model.pipeline().pieces());
  std::vector<double> seconds;
  for (const PassCosts& cost : costs)
    seconds.insert(seconds.end(), {cost.forward, cost.backward_input, cost.backward_weight});
  const Groups& groups = model.groups();
  Tensor sum = at::tensor(seconds, at::kDouble) / groups.stage->size();
  groups.control->all_reduce(sum, Reduce::kSum);
  const auto* mean = sum.const_data_ptr<double>();
  for (size_t i = 0; i < costs.size(); ++i) costs[i] = {mean[3 * i], mean[3 * i + 1], mean[3 * i + 2]};
  return costs;
}

std::vector<double> work_of_ranks(const PipelineShape& shape, const std::vector<PassCosts>& costs) {
  std::vector<double> out(shape.ranks, 0);
  for (int piece = 0; piece < shape.pieces(); ++piece) out[place_of(shape, piece).rank] += costs[piece].all();
  return out;
}

/// Of the step, beside the mean of what ranks work.
double waiting(const PipelineShape& shape, int micro_batches, const std::vector<PassCosts>& costs) {
  double work = 0;
  for (const double seconds : work_of_ranks(shape, costs)) work += seconds * micro_batches / shape.ranks;
  return work > 0 ? 1 - work / pipeline_span(shape, micro_batches, costs, 0) : 0;
}

std::string percent(double share) {
  return printed("%.1f %%", 100 * share);
}

const char* text_of(Action::Kind kind) {
  switch (kind) {
    case Action::Kind::kForward: return "forward";
    case Action::Kind::kBackward: return "backward";
    case Action::Kind::kBackwardInput: return "input gradients";
    case Action::Kind::kBackwardWeight: return "weight gradients";
  }
  return "";
}

/// What this rank's wall clock showed at a moment that is past, whatever the device is at now.
double wall_s_at(const Moment& moment, at::Device device) {
  constexpr int kTries = 5;  // one of them is not interrupted
  SideStream side(device, /*urgent=*/true);
  double shown = 0, shortest = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kTries; ++i) {
    const double before = wall_s();
    Moment now;
    side.run_ahead([&] { now = Moment::now(device); });
    now.wait();
    const double after = wall_s();
    if (after - before >= shortest) continue;
    shortest = after - before;
    shown = (before + after) / 2 - now.seconds_since(moment);
  }
  return shown;
}

/// The step and its passes.
nlohmann::json events_of(const PassTimes& times, const Moment& end, double end_wall_s, int rank) {
  const auto event = [&](const std::string& name, double begin_s, double end_s) {
    return nlohmann::json{{"ph", "X"},
                          {"name", name},
                          {"pid", 0},
                          {"tid", rank},
                          {"ts", (end_wall_s + begin_s) * 1e6},
                          {"dur", (end_s - begin_s) * 1e6}};
  };
  auto events = nlohmann::json::array({event("step", times.start().seconds_since(end), 0)});
  for (const PassTimes::Span& span : times.spans(end)) {
    const char* kind = text_of(span.action.kind);
    nlohmann::json pass = event(concat(kind, " ", span.action.micro_batch), span.begin_s, span.end_s);
    pass["cat"] = kind;
    pass["args"] = {{"piece", span.piece}, {"micro_batch", span.action.micro_batch}};
    events.push_back(std::move(pass));
  }
  return events;
}

}  // namespace

void fit_pipeline(const PassTimes& times, Vlm& model) {
  const std::vector<PassCosts> costs = shared_costs(times, model);
  const bool was_timed = std::any_of(costs.begin(), costs.end(), [](const PassCosts& cost) { return cost.all() > 0; });
  if (!was_timed) return;  // a step without a label
  const PipelineShape before = model.pipeline();
  const int micro_batches = times.micro_batches();
  std::vector<std::string> work;
  for (const double seconds : work_of_ranks(before, costs)) work.push_back(printed("%.1f", 1e3 * seconds));
  std::string text = concat("pipeline: ranks work ", work, " ms for a micro-batch; by that they wait ");
  text += percent(waiting(before, micro_batches, costs)) + " of the time";
  const bool shares_a_table = model.config().decoder.tied && model.last_rank() == 0;
  if (before.schedule == Schedule::kZeroBubbleV && !shares_a_table) {
    model.set_measured_costs(costs);
    text += ", " + percent(waiting(model.pipeline(), micro_batches, costs)) + " with lists made for it";
  }
  HANOK_LOG_RANK0(INFO) << text << " (" << name(before.schedule) << ", " << micro_batches << " micro-batches)";
}

void write_pipeline_diagram(const std::string& path, const PassTimes& times, const Moment& end, const Vlm& model) {
  const Groups& groups = model.groups();
  const PipelineShape& shape = model.pipeline();
  const std::string own = events_of(times, end, wall_s_at(end, model.device()), groups.at.pp).dump();
  nlohmann::json events = nlohmann::json::array();
  for (int rank = 0; rank < shape.ranks; ++rank) {
    const std::string text = broadcast_text(own, groups.mesh.rank_at(rank, 0, 0, 0), *groups.control);
    if (groups.rank != 0) continue;
    const nlohmann::json of_rank = nlohmann::json::parse(text);
    events.insert(events.end(), of_rank.begin(), of_rank.end());
    events.push_back({{"ph", "M"},
                      {"name", "thread_name"},
                      {"pid", 0},
                      {"tid", rank},
                      {"args", {{"name", concat("rank ", rank, " of pp")}}}});
  }
  if (groups.rank != 0) return;
  double first = 0;
  for (const nlohmann::json& event : events)
    if (event.contains("ts") && (first == 0 || event["ts"] < first)) first = event["ts"];
  for (nlohmann::json& event : events)
    if (event.contains("ts")) event["ts"] = event["ts"].get<double>() - first;
  try {
    write_file_atomically(path, nlohmann::json({{"traceEvents", events}}).dump() + "\n");
    HANOK_LOG(INFO) << "diagram of the pipeline: " << path << " (ui.perfetto.dev opens it)";
  } catch (const Error& error) {  // not worth a run
    HANOK_LOG(WARNING) << error.what();
  }
}

}  // namespace hanok
