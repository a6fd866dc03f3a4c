// Settings with which a stage fits a GPU.
#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "base/error.h"
#include "configs/schema/check.h"
#include "launch/estimate.h"

namespace hanok {
namespace {

/// A way to the same training (or, for seq_len, to shorter rows) with less memory on a rank.
struct Change {
  enum class Kind { kRecompute, kRows, kTp, kCp, kDp, kGradDtype, kSeqLen } kind;
  int64_t value = 0;           // of kRecompute: recompute_every
  const char* recompute = "";  // and what the stage's keys say
  bool offload = false;
};

struct Candidate {
  StageConfig stage;
  ParallelConfig layout;
  std::vector<std::string> sets;
};

void apply(const Change& change, const std::string& key, Candidate& c) {
  switch (change.kind) {
    case Change::Kind::kRecompute:
      c.stage.recompute = change.recompute;
      c.stage.recompute_every = change.value;
      c.sets.push_back(concat(key, "recompute=", change.recompute));
      if (change.value > 1) c.sets.push_back(concat(key, "recompute_every=", change.value));
      if (!change.offload) break;
      c.stage.offload = true;
      c.sets.push_back(key + "offload=true");
      break;
    case Change::Kind::kRows:
      c.stage.rows_per_micro_batch = change.value;
      c.sets.push_back(concat(key, "rows_per_micro_batch=", change.value));
      break;
    case Change::Kind::kTp: {
      const int64_t world = c.layout.tp * c.layout.dp;
      c.layout.tp = change.value;
      c.layout.dp = std::max<int64_t>(1, world / change.value);
      c.sets.push_back(concat("parallel.tp=", change.value));
      break;
    }
    case Change::Kind::kCp:
      c.layout.dp = std::max<int64_t>(1, c.layout.cp * c.layout.dp / change.value);
      c.layout.cp = change.value;
      c.sets.push_back(concat("parallel.cp=", change.value));
      break;
    case Change::Kind::kDp:
      c.layout.dp = change.value;
      c.sets.push_back(concat("parallel.dp=", change.value));
      break;
    case Change::Kind::kGradDtype:
      c.stage.optimizer.grad_dtype = "bfloat16";
      c.sets.push_back("optimizer.grad_dtype=bfloat16");
      break;
    case Change::Kind::kSeqLen:
      c.stage.seq_len = change.value;
      c.sets.push_back(concat(key, "seq_len=", change.value));
      break;
  }
}

std::vector<Change> changes_of(const StageConfig& stage, const ParallelConfig& layout) {
  using Kind = Change::Kind;
  std::vector<Change> out;
  const auto recompute = [&](const char* how, int64_t every, bool offload = false) {
    out.push_back({Kind::kRecompute, every, how, offload});
  };
  if (stage.recompute == "none") recompute("selective", 1);
  if (stage.recompute == "none" || stage.recompute == "selective") recompute("all_but_attention", 1);
  if (stage.recompute != "full") recompute("full", 2);
  if (stage.recompute != "full" || stage.recompute_every > 1) recompute("full", 1);
  if (!stage.offload) recompute("full", 1, /*offload=*/true);
  for (int64_t rows = stage.rows_per_micro_batch / 2; rows >= 1; rows /= 2) out.push_back({Kind::kRows, rows});
  for (const int64_t tp : {2, 4, 8})
    if (tp > layout.tp) out.push_back({Kind::kTp, tp});
  for (const int64_t cp : {2, 4, 8})
    if (cp > layout.cp) out.push_back({Kind::kCp, cp});
  for (const int64_t dp : {2, 4, 8, 16, 32, 64})
    if (dp > layout.dp) out.push_back({Kind::kDp, dp});
  if (stage.optimizer.grad_dtype == "float32") out.push_back({Kind::kGradDtype});
  for (int64_t length = stage.seq_len / 2; length >= 512; length /= 2) out.push_back({Kind::kSeqLen, length});
  return out;
}

bool is_allowed(const RunConfig& config, const Candidate& c) {
  if (!violations(config.model, c.layout).empty()) return false;
  RunConfig changed = config;
  StageConfig stage = c.stage;
  stage.parallel = c.layout;
  changed.stages = {stage};
  return violations(changed, static_cast<int>(c.layout.tp * c.layout.pp * c.layout.cp * c.layout.dp)).empty();
}

/// Which keys a suggestion sets: "recompute, rows_per_micro_batch".
std::string keys_of(const Suggestion& s) {
  std::string keys;
  for (const std::string& set : s.sets)
    if (set.find("recompute_every") == std::string::npos) keys += set.substr(0, set.find('=')) + " ";
  return keys;
}

/// Shorter rows see other samples: the only change that is not the same training.
bool shortens_rows(const Suggestion& s) {
  return std::any_of(
      s.sets.begin(), s.sets.end(), [](const std::string& set) { return set.find(".seq_len=") != std::string::npos; });
}

/// The same training first, then as few GPUs as possible, then the fastest; of those that set the same keys the first.
std::vector<Suggestion> best_of(std::vector<Suggestion> found) {
  const auto rate = [](const Suggestion& s) { return s.estimate.tokens_per_s() / s.world; };
  std::stable_sort(found.begin(), found.end(), [&](const Suggestion& a, const Suggestion& b) {
    if (shortens_rows(a) != shortens_rows(b)) return shortens_rows(b);
    return a.world != b.world ? a.world < b.world : rate(a) > rate(b);
  });
  std::vector<Suggestion> best;
  for (Suggestion& s : found) {
    const bool is_new =
        std::none_of(best.begin(), best.end(), [&](const Suggestion& b) { return keys_of(b) == keys_of(s); });
    if (is_new && best.size() < 3) best.push_back(std::move(s));
  }
  return best;
}

/// Tries changes alone, in pairs, in threes, until three ways are found that set different keys.
class Search {
 public:
  Search(const RunConfig& config,
         const StageConfig& stage,
         const ParallelConfig& layout,
         const Supposed& supposed,
         const GpuConfig& gpu)
      : config_(config),
        start_{stage, layout, {}},
        supposed_(supposed),
        gpu_(gpu),
        changes_(changes_of(stage, layout)) {
    start_.layout.dp = std::max<int64_t>(1, layout.dp);
  }

  std::vector<Suggestion> run() {
    for (size_t count = 1; count <= 3; ++count) {
      combine(count, 0);
      const std::vector<Suggestion> best = best_of(found_);
      // Threes are many: they are tried only while there is too little to propose.
      if (best.size() == 3 && (count == 2 || !shortens_rows(best.back()))) break;
    }
    return best_of(found_);
  }

 private:
  void combine(size_t count, size_t first) {
    if (chosen_.size() == count) return try_out();
    for (size_t i = first; i < changes_.size(); ++i) {
      const bool repeats = std::any_of(
          chosen_.begin(), chosen_.end(), [&](const Change* other) { return other->kind == changes_[i].kind; });
      if (repeats || fits_with_.contains(i)) continue;  // what fits alone needs no company
      chosen_.push_back(&changes_[i]);
      combine(count, i + 1);
      chosen_.pop_back();
    }
  }

  void try_out() {
    Candidate c = start_;
    for (const Change* change : chosen_) apply(*change, concat("stages.", c.stage.name, "."), c);
    if (!is_allowed(config_, c)) return;
    const Estimate e = estimate(config_, c.stage, model_on(c.layout), supposed_, &gpu_);
    if (!fits(e, gpu_)) return;
    if (chosen_.size() == 1) fits_with_.insert(static_cast<size_t>(chosen_[0] - changes_.data()));
    found_.push_back({c.sets, e.mesh.world(), e});
  }

  /// Most changes leave the layout as it is, and the model depends on nothing else.
  const PlannedModel& model_on(const ParallelConfig& layout) {
    auto& model = models_[{layout.tp, layout.cp, layout.dp}];
    if (!model.model) model = plan_model(config_, start_.stage, layout, &gpu_);
    return model;
  }

  const RunConfig& config_;
  Candidate start_;
  const Supposed& supposed_;
  const GpuConfig& gpu_;
  const std::vector<Change> changes_;
  std::vector<const Change*> chosen_;
  std::set<size_t> fits_with_;
  std::vector<Suggestion> found_;
  std::map<std::array<int64_t, 3>, PlannedModel> models_;  // by tp, cp and dp
};

}  // namespace

std::vector<Suggestion> suggest(const RunConfig& config,
                                const StageConfig& stage,
                                const ParallelConfig& layout,
                                const Supposed& supposed,
                                const GpuConfig& gpu) {
  return Search(config, stage, layout, supposed, gpu).run();
}

}  // namespace hanok
