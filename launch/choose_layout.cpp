#include "launch/choose_layout.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>

#include "base/error.h"
#include "configs/schema/check.h"
#include "launch/estimate_time.h"
#include "model/balance.h"
#include "trainer/configured_dtype.h"
#include "trainer/optimizer.h"
#include "trainer/progress.h"

namespace hanok {
namespace {

constexpr size_t kShown = 6;         // choices
constexpr int kLooks = 300;          // at the memory of a combination, at most
constexpr double kFree = 0.05;       // of the memory, for fragments
constexpr double kSameTime = 0.005;  // what is not faster by more should be simpler

struct Option {
  StageConfig stage;
  Estimate::Seconds seconds;
  size_t number = 0;     // in which order it was found
  bool is_exact = true;  // else without what stages of a pipeline wait for each other
};

std::vector<int64_t> powers_up_to(int64_t most) {
  std::vector<int64_t> out;
  for (int64_t n = 1; n <= most; n *= 2) out.push_back(n);
  return out;
}

/// Of `pp` ranks.
std::vector<int64_t> rooms_worth_a_look(std::string_view schedule, int64_t pp) {
  if (schedule == "zb-v") return {0, pp, 2 * pp};
  if (schedule == "1f1b" && pp > 1) return {0, pp / 2};
  return {0};
}

/// How much of the machinery a combination uses.
int complexity(const StageConfig& s) {
  const ParallelConfig& p = s.parallel;
  return (p.tp > 1) + (p.pp > 1) + (p.cp > 1) + (p.ep > 1) + (p.pp > 1 && p.schedule != "1f1b") + (p.pp_room > 0) +
         (s.recompute != "none") + s.offload;
}

class Chooser {
 public:
  Chooser(const RunConfig& config, const StageConfig& stage, int gpus, const Supposed& supposed, const GpuConfig& gpu)
      : config_(config), stage_(stage), gpus_(gpus), supposed_(supposed), gpu_(gpu) {
    config_.stages = {stage_};
  }

  LayoutChoices run() {
    for (const int64_t tp : powers_up_to(std::min<int64_t>(gpus_, gpu_.link.gpus)))
      for (int64_t pp = 1; pp * tp <= gpus_; ++pp)
        for (const int64_t cp : powers_up_to(gpus_ / (tp * pp)))
          if (gpus_ % (tp * pp * cp) == 0) add_axes(tp, pp, cp);
    look();
    return std::move(out_);
  }

 private:
  double room() const { return (1 - kFree) * gpu_.memory_gib * (1 << 30); }

  void add_axes(int64_t tp, int64_t pp, int64_t cp) {
    StageConfig stage = stage_;
    ParallelConfig& layout = stage.parallel;
    layout.tp = tp;
    layout.pp = pp;
    layout.cp = cp;
    layout.etp = 1;
    layout.dp = gpus_ / (tp * pp * cp);
    layout.pp_layers.clear();
    layout.chunks = layout.pp_room = 0;
    layout.context = "auto";
    const int64_t most_ep = config_.model.decoder.is_moe() ? layout.dp * cp * tp : 1;
    for (const int64_t ep : powers_up_to(most_ep)) {
      layout.ep = ep;
      for (const char* schedule : {"1f1b", "interleaved", "zb-h1", "zb-v"}) {
        if (pp == 1 && std::string_view(schedule) != "1f1b") break;
        layout.schedule = schedule;
        for (const int64_t room : rooms_worth_a_look(layout.schedule, pp)) {
          layout.pp_room = room;
          add_rows(stage);
        }
        layout.pp_room = 0;
      }
    }
  }

  void add_rows(StageConfig stage) {
    for (const int64_t rows : {1, 2, 4, 8}) {
      stage.rows_per_micro_batch = rows;
      const std::string why_not = refusal(stage);
      if (!why_not.empty() && rows == 1) note_refusal(stage.parallel, why_not);
      if (!why_not.empty()) continue;
      for (const char* recompute : {"none", "selective", "all_but_attention", "full"})
        for (const bool offload : {false, true}) {
          if (offload && std::string_view(recompute) != "full") continue;
          stage.recompute = recompute;
          stage.recompute_every = 1;
          stage.offload = offload;
          ++out_.allowed;
          add(stage);
        }
    }
  }

  /// Which rule forbids it; empty: none does.
  std::string refusal(const StageConfig& stage) {
    const int64_t rows = stage.rows_per_micro_batch * stage.parallel.dp;
    if (stage.rows_per_step % rows != 0)
      return concat("rows_per_step: got ", stage.rows_per_step, ", expected a multiple of the ", rows, " rows of dp");
    if (const auto found = violations(config_.model, stage.parallel); !found.empty()) return found.front().message;
    config_.stages.front() = stage;
    if (const auto found = violations(config_, gpus_); !found.empty()) return found.front().message;
    const PipelineShape shape = pipeline_shape(stage.parallel);
    const int64_t most = most_pieces(config_.model);
    if (shape.ranks == 1 || shape.pieces() <= most) return "";
    return concat("pipeline: got ", shape.pieces(), " pieces, expected at most ", most, " of this model");
  }

  void note_refusal(const ParallelConfig& p, const std::string& why_not) {
    if (p.ep > 1 || p.schedule != "1f1b" || p.pp_room > 0) return;
    std::string layout;
    const std::pair<const char*, int64_t> axes[] = {{"tp", p.tp}, {"pp", p.pp}, {"cp", p.cp}, {"dp", p.dp}};
    for (const auto& [name, size] : axes)
      if (size > 1) layout += concat(layout.empty() ? "" : ",", name, size);
    out_.refused.push_back(concat(layout.empty() ? "1 rank" : layout, ": ", why_not));
  }

  /// Weights of a rank that would hold all layers.
  const PlannedModel& model_on(const StageConfig& stage, const ParallelConfig& layout) {
    PlannedModel& model = models_[{layout.tp, layout.ep, layout.sequence}];
    if (!model.model) {
      ParallelConfig least = layout;
      least.pp = least.cp = 1;
      least.dp = std::max<int64_t>(1, layout.ep / layout.tp);
      model = plan_model(config_, stage, least, &gpu_);
    }
    return model;
  }

  /// use(what the times of this stage follow from); it refers to `stage`.
  template <class Use>
  void with_timed(const StageConfig& stage, const Use& use) {
    const ParallelConfig& p = stage.parallel;
    const PlannedModel& model = model_on(stage, p);
    const ParamTable& params = model.model->params();
    const Mesh mesh({.dp = static_cast<int>(p.dp),
                     .cp = static_cast<int>(p.cp),
                     .tp = static_cast<int>(p.tp),
                     .ep = static_cast<int>(p.ep)});
    const Groups groups = make_planned_groups(mesh, 0, p.sequence && p.tp > 1);
    const KernelSet kernels = kernels_on(config_, stage, &gpu_);
    const Recompute recompute = recompute_of(stage);
    const StepLoad load = load_of(config_, stage, groups, supposed_);
    const auto kept = [&](const Recompute& how) -> const ActivationBytes& {
      const std::array<int64_t, 7> key{
          p.tp, p.cp, p.ep, stage.rows_per_micro_batch, how.every, static_cast<int64_t>(how.keep), how.offload};
      const auto found = activations_.find(key);
      if (found != activations_.end()) return found->second;
      return activations_[key] = activation_bytes(config_.model, params, groups, load.batch, how, kernels);
    };
    const std::array<int64_t, 4> held_key{p.tp, p.cp, p.ep, p.dp};
    if (!held_.contains(held_key)) held_[held_key] = held_elements(params, groups);
    auto& products = products_[{recompute.every, static_cast<int64_t>(recompute.keep)}];
    if (products.empty()) products = products_of(config_.model, params, load.work, recompute);
    TimedStage timed{.config = config_,
                     .stage = stage,
                     .groups = groups,
                     .shape = pipeline_shape(p),
                     .products = products,
                     .load = load,
                     .micro_batches = micro_batches_of(stage, mesh.shape()),
                     .dtype = dtype_on(config_.model, &gpu_),
                     .kernels = kernels,
                     .without = kept({}),
                     .kept = kept(recompute),
                     .held = held_[held_key]};
    use(timed);
  }

  void add(StageConfig stage) {
    with_timed(stage, [&](TimedStage& timed) {
      const bool is_pipeline = stage.parallel.pp > 1;
      if (is_pipeline) {
        balance_pipeline(config_.model, sublayer_seconds(timed, gpu_), stage.parallel);
        timed.shape = pipeline_shape(stage.parallel);
      }
      if (least_bytes(timed) > room()) return;
      const Estimate::Seconds seconds = is_pipeline ? seconds_without_waiting(timed, gpu_) : seconds_of(timed, gpu_);
      push({stage, seconds, options_.size(), !is_pipeline});
    });
  }

  void push(Option option) {
    options_.push_back(std::move(option));
    std::push_heap(options_.begin(), options_.end(), comes_after);
  }

  /// The fastest first; of those as fast, the simplest.
  static bool comes_after(const Option& a, const Option& b) {
    const auto cost = [](const Option& o) {
      return std::pair(o.seconds.total() * (1 + kSameTime * complexity(o.stage)), o.number);
    };
    return cost(a) > cost(b);
  }

  /// The first of what is left. How long the ranks of a pipeline wait takes long to find out: it is asked of those only
  /// that would be the first without.
  std::optional<Option> next() {
    while (!options_.empty()) {
      std::pop_heap(options_.begin(), options_.end(), comes_after);
      Option option = std::move(options_.back());
      options_.pop_back();
      if (option.is_exact) return option;
      with_timed(option.stage, [&](const TimedStage& timed) { option.seconds = seconds_of(timed, gpu_); });
      option.is_exact = true;
      push(std::move(option));
    }
    return std::nullopt;
  }

  /// Below what the fullest stage holds: an even share of the weights and of what is kept.
  double least_bytes(const TimedStage& t) const {
    const double weight = static_cast<double>(c10::elementSize(t.dtype));
    const auto gradient = static_cast<double>(c10::elementSize(configured_dtype(t.stage.optimizer.grad_dtype)));
    const double always = t.held.trained * (weight + gradient) + (t.held.shard + t.held.expert_shard) * 12;
    // Of the V the lists would have to be made for it.
    const auto micro_batches = static_cast<int>(t.micro_batches);
    const double live = t.shape.schedule == Schedule::kZeroBubbleV
                            ? std::min(micro_batches, t.shape.ranks - 1)
                            : peak_live_chunks(t.shape, 0, micro_batches) / t.shape.chunks;
    return (always + std::max(1.0, live) * t.kept.decoder * 0.9) / t.shape.ranks;
  }

  /// Looks at the memory of the fastest until enough fit.
  void look() {
    int looks = 0;
    while (const std::optional<Option> found = next()) {
      const Option& option = *found;
      if (out_.best.size() == kShown || looks == kLooks) return;
      if (is_like_one_shown(option.stage)) continue;
      ++looks;
      const PlannedModel planned = plan_model(config_, option.stage, option.stage.parallel, &gpu_);
      const Estimate e = estimate(config_, option.stage, planned, supposed_, &gpu_);
      if (e.peak_bytes > room()) continue;
      ++out_.fitting;
      out_.best.push_back({option.stage, sets_of(option.stage), *e.seconds, e.peak_bytes, e.micro_batches, ""});
      out_.best.back().why = why(out_.best.back());
    }
    out_.looked_at_all = looks < kLooks;
  }

  /// The same sizes with another schedule, more rows or recomputation are shown once.
  bool is_like_one_shown(const StageConfig& stage) const {
    const auto key = [](const ParallelConfig& p) { return std::array<int64_t, 5>{p.tp, p.pp, p.cp, p.ep, p.dp}; };
    return std::any_of(out_.best.begin(), out_.best.end(), [&](const LayoutChoice& shown) {
      return key(shown.stage.parallel) == key(stage.parallel);
    });
  }

  std::vector<std::string> sets_of(const StageConfig& stage) const {
    const ParallelConfig& p = stage.parallel;
    const std::string of_stage = concat("stages.", stage.name, ".");
    std::vector<std::string> sets;
    const std::pair<const char*, int64_t> axes[] = {
        {"tp", p.tp}, {"pp", p.pp}, {"cp", p.cp}, {"ep", p.ep}, {"dp", p.dp}};
    for (const auto& [name, size] : axes) sets.push_back(concat("parallel.", name, "=", size));
    if (p.pp > 1) sets.push_back("parallel.schedule=" + p.schedule);
    if (p.pp_room > 0) sets.push_back(concat("parallel.pp_room=", p.pp_room));
    sets.push_back(concat(of_stage, "rows_per_micro_batch=", stage.rows_per_micro_batch));
    sets.push_back(of_stage + "recompute=" + stage.recompute);
    if (stage.offload) sets.push_back(of_stage + "offload=true");
    return sets;
  }

  /// Of the first: where its time goes. Of another: what it spends more on than the first.
  std::string why(const LayoutChoice& choice) const {
    struct Part {
      const char* text;
      double Estimate::Seconds::*seconds;
    };
    const Part parts[] = {{"products that run again or are narrow", &Estimate::Seconds::matrices},
                          {"attention", &Estimate::Seconds::attention},
                          {"passes over memory", &Estimate::Seconds::memory},
                          {"the optimizer", &Estimate::Seconds::optimizer},
                          {"collectives of tp", &Estimate::Seconds::tensor_parallel},
                          {"collectives of cp", &Estimate::Seconds::context_parallel},
                          {"exchanges of ep", &Estimate::Seconds::expert_parallel},
                          {"copies to the host", &Estimate::Seconds::offload},
                          {"gradients and weights that nothing hides", &Estimate::Seconds::data_parallel},
                          {"waiting for other stages", &Estimate::Seconds::pipeline}};
    const Estimate::Seconds& first = out_.best.front().seconds;
    const bool is_first = out_.best.size() == 1;
    const Part* most = nullptr;
    double most_s = 0;
    for (const Part& part : parts) {
      const bool is_work = part.seconds == &Estimate::Seconds::matrices ||
                           part.seconds == &Estimate::Seconds::attention || part.seconds == &Estimate::Seconds::memory;
      const double s = choice.seconds.*part.seconds - (is_first ? 0 : first.*part.seconds);
      if (s <= most_s || (is_first && is_work)) continue;
      most = &part;
      most_s = s;
    }
    const double total = choice.seconds.total();
    if (is_first)
      return most ? concat("the fastest; beside the work itself most goes to ",
                           most->text,
                           printed(" (%.1f %%)", 100 * most_s / total))
                  : std::string("the fastest; nothing but the work itself");
    const double slower = 100 * (total / first.total() - 1);
    constexpr double kVisible = 0.05;  // less is printed as 0.0
    if (slower < -kVisible) return printed("%.1f %% faster, with more machinery", -slower);
    if (!most || slower < kVisible) return "as fast, with more machinery";
    return printed("%.1f %% slower: ", slower) + concat("more for ", most->text);
  }

  RunConfig config_;
  const StageConfig stage_;
  const int gpus_;
  const Supposed& supposed_;
  const GpuConfig& gpu_;
  std::vector<Option> options_;
  std::map<std::array<int64_t, 3>, PlannedModel> models_;
  std::map<std::array<int64_t, 7>, ActivationBytes> activations_;
  std::map<std::array<int64_t, 4>, HeldElements> held_;
  std::map<std::array<int64_t, 2>, std::vector<Product>> products_;
  LayoutChoices out_;
};

}  // namespace

LayoutChoices choose_layouts(
    const RunConfig& config, const StageConfig& stage, int gpus, const Supposed& supposed, const GpuConfig& gpu) {
  return Chooser(config, stage, gpus, supposed, gpu).run();
}

}  // namespace hanok
