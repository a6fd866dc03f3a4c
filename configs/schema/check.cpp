#include "configs/schema/check.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "configs/schema/rules.h"

namespace hanok {
namespace {

using S = StageConfig;
const Rule<S> kStageRules[] = {
    {"one_length",
     [](const S& s) { return (s.steps > 0) + (s.tokens > 0) + (s.epochs > 0) == 1; },
     [](const S& s) {
       return concat("length: got steps ",
                     s.steps,
                     ", tokens ",
                     s.tokens,
                     ", epochs ",
                     s.epochs,
                     ", expected exactly one of them above 0");
     }},
    {"trainable",
     [](const S& s) { return !s.trainable.empty(); },
     [](const S&) { return std::string("trainable: got no glob, expected at least one; [\"**\"] trains all"); }},
    {"warmup_once",
     [](const S& s) {
       return (s.optimizer.warmup_steps > 0) + (s.optimizer.warmup_tokens > 0) + (s.optimizer.warmup_share > 0) <= 1;
     },
     [](const S& s) {
       return concat("optimizer: got warmup_steps ",
                     s.optimizer.warmup_steps,
                     ", warmup_tokens ",
                     s.optimizer.warmup_tokens,
                     ", warmup_share ",
                     s.optimizer.warmup_share,
                     ", expected at most one of them above 0");
     }},
    {"warmup_fits",
     [](const S& s) { return s.steps == 0 || s.optimizer.warmup_steps <= s.steps; },
     [](const S& s) {
       return concat("optimizer.warmup_steps: got ", s.optimizer.warmup_steps, ", expected at most steps = ", s.steps);
     }},
    {"betas_below_one",
     [](const S& s) { return s.optimizer.beta1 < 1 && s.optimizer.beta2 < 1; },
     [](const S& s) {
       return concat(
           "optimizer: got beta1 ", s.optimizer.beta1, " and beta2 ", s.optimizer.beta2, ", expected both below 1");
     }},
    {"chunks_of_schedule",
     [](const S& s) {
       const ParallelConfig& p = s.parallel;
       if (p.pp == 1 || p.schedule == "interleaved" || p.chunks == 0) return true;
       return p.chunks == (p.schedule == "zb-v" ? 2 : 1);
     },
     [](const S& s) {
       return concat("parallel.chunks: got ",
                     s.parallel.chunks,
                     " with parallel.schedule ",
                     s.parallel.schedule,
                     ", expected ",
                     s.parallel.schedule == "zb-v" ? 2 : 1,
                     " (only interleaved takes any number); set chunks: 0, or schedule: interleaved");
     }},
    {"room_of_schedule",
     [](const S& s) {
       const ParallelConfig& p = s.parallel;
       if (p.pp_room == 0 || (p.pp > 1 && p.schedule == "zb-v")) return true;
       return p.schedule == "1f1b" && p.pp_room < p.pp;
     },
     [](const S& s) {
       return concat("parallel.pp_room: got ",
                     s.parallel.pp_room,
                     " with parallel.pp ",
                     s.parallel.pp,
                     " and parallel.schedule ",
                     s.parallel.schedule,
                     ", expected 0, or a pipeline with zb-v or, up to pp - 1, 1f1b, the schedules that have a use for "
                     "it; set pp_room: 0");
     }},
    {"offload_of_recomputed",
     [](const S& s) { return !s.offload || s.recompute != "none"; },
     [](const S& s) {
       return concat("offload: got true with recompute ",
                     s.recompute,
                     ", expected selective, all_but_attention or full; what recomputed layers keep is what goes to "
                     "host memory; set recompute: full");
     }},
    {"seq_len_cut",
     [](const S& s) { return !s.parallel.sequence || s.seq_len % s.parallel.tp == 0; },
     [](const S& s) {
       return concat("seq_len: got ",
                     s.seq_len,
                     ", expected a multiple of parallel.tp = ",
                     s.parallel.tp,
                     "; change it, or set parallel.sequence: false");
     }},
};

/// Names become folders; file systems end them at 255 bytes, some of which writers add (".tmp").
constexpr size_t kMaxNameBytes = 200;

/// Stage names become folders and parts of --set paths.
bool is_folder_name(const StageConfig& stage) {
  const auto is_plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  };
  return !stage.name.empty() && stage.name.size() <= kMaxNameBytes &&
         std::all_of(stage.name.begin(), stage.name.end(), is_plain);
}

using R = RunConfig;
const Rule<R> kRunRules[] = {
    {"has_stages",
     [](const R& r) { return !r.stages.empty(); },
     [](const R&) { return std::string("stages: got none, expected at least one; see configs/run/ for examples"); }},
    {"stage_names_unique",
     [](const R& r) {
       std::set<std::string> names;
       return std::all_of(r.stages.begin(), r.stages.end(), [&](const auto& s) { return names.insert(s.name).second; });
     },
     [](const R& r) {
       std::vector<std::string> names;
       for (const auto& stage : r.stages) names.push_back(stage.name);
       return concat("stages.N.name: got ", names, ", expected every name once; checkpoints are filed under them");
     }},
    {"stage_names_are_folders",
     [](const R& r) { return std::all_of(r.stages.begin(), r.stages.end(), is_folder_name); },
     [](const R& r) {
       const auto wrong = std::find_if_not(r.stages.begin(), r.stages.end(), is_folder_name);
       return concat("stages.N.name: got \"",
                     wrong->name,
                     "\", expected letters, digits, '_' and '-', at most ",
                     kMaxNameBytes,
                     "; checkpoints are filed under it");
     }},
    {"end_is_saved_where_it_is_needed",
     [](const R& r) { return r.save.at_end || (r.stages.size() == 1 && !r.save.export_model); },
     [](const R& r) {
       return concat("save.at_end: got false with ",
                     r.stages.size(),
                     " stages and save.export_model: ",
                     r.save.export_model,
                     ", expected one stage and no export; the next stage starts from what is saved");
     }},
    {"name_is_a_folder",
     [](const R& r) {
       return !r.name.empty() && r.name.size() <= kMaxNameBytes && r.name.find('/') == std::string::npos &&
              r.name[0] != '.';
     },
     [](const R& r) {
       return concat("name: got \"",
                     r.name,
                     "\", expected text without '/' that does not begin with a dot, at most ",
                     kMaxNameBytes,
                     " bytes; "
                     "the run lies in runs/<name> where `out` is empty");
     }},
    {"has_data",
     [](const R& r) { return !r.data.sets.empty(); },
     [](const R&) { return std::string("data.sets: got none, expected at least one dataset to train on"); }},
    {"has_tokenizer",
     [](const R& r) { return !r.model.tokenizer.empty() || !r.model.path.empty(); },
     [](const R&) {
       return std::string(
           "model.tokenizer: got none and no model.path, expected a folder with tokenizer.json or vocab.json and "
           "merges.txt");
     }},
    {"best_needs_eval",
     [](const R& r) { return r.eval.patience == 0 || !r.eval.set.empty(); },
     [](const R& r) {
       return concat(
           "eval.patience: got ", r.eval.patience, " without eval.set, expected a held-out dataset to judge by");
     }},
    {"early_stop_keeps_best",
     [](const R& r) { return r.eval.patience == 0 || r.save.best; },
     [](const R& r) {
       return concat("save.best: got false with eval.patience ",
                     r.eval.patience,
                     ", expected true; early stopping goes back to the best checkpoint");
     }},
    {"eval_set_known",
     [](const R& r) { return r.eval.set.empty() || r.data.sets.count(r.eval.set); },
     [](const R& r) { return concat("eval.set: got ", r.eval.set, ", expected a name in data.sets"); }},
    {"pixel_order",
     [](const R& r) {
       return r.data.min_pixels == 0 || r.data.max_pixels == 0 || r.data.min_pixels <= r.data.max_pixels;
     },
     [](const R& r) {
       return concat(
           "data.min_pixels: got ", r.data.min_pixels, ", expected at most data.max_pixels = ", r.data.max_pixels);
     }},
};

struct MixtureShare {
  const RunConfig& run;
  const std::string& set;
  double share;
};
using X = MixtureShare;
const Rule<X> kMixtureRules[] = {
    {"mixture_known",
     [](const X& x) { return x.run.data.sets.count(x.set) > 0; },
     [](const X& x) { return concat("mixture: got ", x.set, ", expected a name in data.sets"); }},
    {"mixture_share",
     [](const X& x) { return x.share > 0; },
     [](const X& x) { return concat("mixture.", x.set, ": got ", x.share, ", expected a share above 0"); }},
};

std::string layout_fault(const ParallelConfig& p, int world_size) {
  const int64_t others = p.tp * p.pp * p.cp;
  if (p.dp == 0)
    return concat("layout: got -np ",
                  world_size,
                  ", expected a multiple of tp ",
                  p.tp,
                  " x pp ",
                  p.pp,
                  " x cp ",
                  p.cp,
                  " = ",
                  others,
                  "; change -np or the parallel keys");
  return concat("layout: got -np ",
                world_size,
                ", expected tp ",
                p.tp,
                " x pp ",
                p.pp,
                " x cp ",
                p.cp,
                " x dp ",
                p.dp,
                " = ",
                others * p.dp,
                "; start with mpirun -np ",
                others * p.dp,
                ", or set parallel.dp: 0 to use what is left");
}

struct StageOnWorld {
  const StageConfig& stage;
  int world_size;
  int64_t others() const { return stage.parallel.tp * stage.parallel.pp * stage.parallel.cp; }
  int64_t dp() const { return stage.parallel.dp > 0 ? stage.parallel.dp : world_size / others(); }
  bool fits() const { return stage.parallel.dp > 0 ? others() * dp() == world_size : world_size % others() == 0; }
};
using W = StageOnWorld;
const Rule<W> kWorldRules[] = {
    {"layout_fits",
     [](const W& w) { return w.fits(); },
     [](const W& w) { return layout_fault(w.stage.parallel, w.world_size); }},
    {"ep_over_ranks",
     [](const W& w) {
       const ParallelConfig& p = w.stage.parallel;
       return !w.fits() || w.dp() * p.cp * p.tp % (p.ep * p.etp) == 0;
     },
     [](const W& w) {
       return concat("parallel.ep: got ",
                     w.stage.parallel.ep,
                     w.stage.parallel.etp > 1 ? concat(" and parallel.etp ", w.stage.parallel.etp) : std::string(),
                     w.stage.parallel.etp > 1 ? ", expected a product that divides dp " : ", expected a divisor of dp ",
                     w.dp(),
                     " x cp ",
                     w.stage.parallel.cp,
                     " x tp ",
                     w.stage.parallel.tp,
                     "; experts are cut over these ranks");
     }},
    {"rows_over_dp",
     [](const W& w) { return !w.fits() || w.stage.rows_per_step % (w.dp() * w.stage.rows_per_micro_batch) == 0; },
     [](const W& w) {
       return concat("rows_per_step: got ",
                     w.stage.rows_per_step,
                     ", expected a multiple of dp ",
                     w.dp(),
                     " x rows_per_micro_batch ",
                     w.stage.rows_per_micro_batch,
                     " = ",
                     w.dp() * w.stage.rows_per_micro_batch);
     }},
};

/// `origin`: where the numbers come from, if not from the config.
void raise(const std::vector<Violation>& found, const std::string& origin = "") {
  if (found.empty()) return;
  std::string text = found.size() == 1 ? "" : concat(found.size(), " contradictions in the config:\n  ");
  for (size_t i = 0; i < found.size(); ++i) text += (i ? "\n  " : "") + found[i].message;
  if (found.size() > 1) {
    text += "\ncorrect these keys in the config; trainer plan checks them without training";
  } else if (text.find(';') == std::string::npos) {
    text += "; correct the key in the config";
  }
  if (!origin.empty()) text += " (numbers of " + origin + ")";
  HANOK_FAIL(kConfig) << text;
}

}  // namespace

std::vector<std::string> rule_names() {
  std::vector<std::string> out;
  append_names(kRunRules, out);
  append_names(kStageRules, out);
  append_names(kMixtureRules, out);
  append_names(kWorldRules, out);
  const auto model = model_rule_names();
  out.insert(out.end(), model.begin(), model.end());
  return out;
}

int64_t data_parallel_size(const ParallelConfig& parallel, int world_size) {
  StageConfig stage;
  stage.parallel = parallel;
  const StageOnWorld layout{stage, world_size};
  HANOK_REQUIRE(layout.fits(), kConfig) << layout_fault(parallel, world_size);
  return layout.dp();
}

std::vector<Violation> violations(const RunConfig& config, int world_size) {
  std::vector<Violation> out;
  check_table(kRunRules, config, "", out);
  for (const auto& stage : config.stages) {
    const std::string where = concat("stages.", stage.name, ".");
    check_table(kStageRules, stage, where, out);
    for (const auto& [set, share] : stage.mixture)
      check_table(kMixtureRules, MixtureShare{config, set, share}, where, out);
    if (world_size > 0) check_table(kWorldRules, StageOnWorld{stage, world_size}, where, out);
  }
  return out;
}

void check_config(const RunConfig& config, int world_size) {
  raise(violations(config, world_size));
}

void check_model(const ModelConfig& model, const ParallelConfig& parallel) {
  raise(violations(model, parallel), model.path.empty() ? "" : model.path + "/config.json");
}

}  // namespace hanok
