#include "launch/choose_report.h"

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launch/plan_report.h"
#include "trainer/progress.h"

namespace hanok {
namespace {

std::string layout_text(const ParallelConfig& p) {
  std::string text;
  const std::pair<const char*, int64_t> axes[] = {{"tp", p.tp}, {"pp", p.pp}, {"cp", p.cp}, {"dp", p.dp}, {"ep", p.ep}};
  for (const auto& [name, size] : axes)
    if (size > 1) text += concat(text.empty() ? "" : " ", name, size);
  if (p.pp > 1) text += " " + p.schedule;
  if (p.pp_room > 0) text += concat(" +", p.pp_room);
  return text.empty() ? "1 rank" : text;
}

std::string recompute_text(const StageConfig& s) {
  return s.offload ? s.recompute + ", offload" : s.recompute;
}

}  // namespace

void print_text(
    const StageChoices& stage, const RunConfig& config, int gpus, const Supposed& supposed, const GpuConfig& gpu) {
  const StageConfig& s = *stage.stage;
  const LayoutChoices& found = stage.choices;
  std::printf("\nstage %s on %d x %s: %lld rows of %lld tokens a step, %.0f %% of the tokens from pictures\n",
              s.name.c_str(),
              gpus,
              gpu.name.c_str(),
              static_cast<long long>(s.rows_per_step),
              static_cast<long long>(s.seq_len),
              100 * supposed.picture_share);
  if (found.allowed == 0) {
    std::printf(
        "  no layout of so many GPUs is allowed by the rules of the config; take another number of GPUs, or mend "
        "what stands in the way of one of these\n");
    constexpr size_t kShown = 12;
    for (size_t i = 0; i < std::min(kShown, found.refused.size()); ++i) std::printf("  %s\n", found.refused[i].c_str());
    if (found.refused.size() > kShown)
      std::printf("  and %lld more\n", static_cast<long long>(found.refused.size() - kShown));
    return;
  }
  if (found.best.empty()) {
    std::printf(
        "  nothing fits: got %lld combinations that the rules of the config allow%s; take more GPUs, shorter rows "
        "(stages.%s.seq_len), more rows a step (rows_per_step, a multiple of what dp leaves), or a smaller model\n",
        static_cast<long long>(found.allowed),
        found.looked_at_all ? "" : ", not all looked at",
        s.name.c_str());
    return;
  }
  std::printf("  %-34s %5s %7s %-14s %10s %12s %12s %11s  %s\n",
              "layout",
              "rows",
              "micro",
              "recompute",
              "step",
              "tok/s a GPU",
              "waits",
              "memory",
              "why");
  const double tokens = static_cast<double>(s.rows_per_step * s.seq_len);
  for (const LayoutChoice& choice : found.best)
    std::printf("  %-34s %5lld %7lld %-14s %8.3f s %12s %10.1f %% %11s  %s\n",
                layout_text(choice.stage.parallel).c_str(),
                static_cast<long long>(choice.stage.rows_per_micro_batch),
                static_cast<long long>(choice.micro_batches),
                recompute_text(choice.stage).c_str(),
                choice.seconds.total(),
                short_number(tokens / choice.seconds.total() / gpus).c_str(),
                100 * choice.seconds.pipeline / choice.seconds.total(),
                human_bytes(choice.peak_bytes).c_str(),
                choice.why.c_str());
  std::string sets;
  for (const std::string& set : found.best.front().sets) sets += " --set " + set;
  std::printf("  of %lld combinations that the rules allow; a twentieth of the memory is left free\n  the first:%s\n",
              static_cast<long long>(found.allowed),
              sets.c_str());
  std::fflush(stdout);
}

std::string to_json(const RunConfig& config, const std::vector<StageChoices>& stages) {
  nlohmann::ordered_json out = nlohmann::ordered_json::array();
  for (const StageChoices& stage : stages) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const LayoutChoice& choice : stage.choices.best)
      list.push_back({{"layout", layout_text(choice.stage.parallel)},
                      {"set", choice.sets},
                      {"step_s", choice.seconds.total()},
                      {"waiting_s", choice.seconds.pipeline},
                      {"peak_bytes", choice.peak_bytes},
                      {"why", choice.why}});
    out.push_back({{"stage", stage.stage->name}, {"allowed", stage.choices.allowed}, {"choices", list}});
    if (stage.choices.allowed == 0) out.back()["refused"] = stage.choices.refused;
  }
  return nlohmann::ordered_json{{"run", config.name}, {"stages", out}}.dump(1);
}

}  // namespace hanok
