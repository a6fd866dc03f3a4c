#include "configs/schema/check.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "base/error.h"

namespace hanok {
namespace {

struct Violations {
  std::vector<std::string> lines;
  void require(bool holds, const std::string& message) {
    if (!holds) lines.push_back(message);
  }
  void raise() const {
    if (lines.empty()) return;
    std::string text = lines.size() == 1 ? "" : concat(lines.size(), " contradictions in the config:\n  ");
    for (size_t i = 0; i < lines.size(); ++i) text += (i ? "\n  " : "") + lines[i];
    HANOK_FAIL(kConfig) << text;
  }
};

template <class Subject>
struct Rule {
  const char* name;
  bool (*holds)(const Subject&);
  std::string (*message)(const Subject&);
};

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
     [](const S& s) { return s.optimizer.warmup_steps == 0 || s.optimizer.warmup_tokens == 0; },
     [](const S& s) {
       return concat("optimizer: got warmup_steps ",
                     s.optimizer.warmup_steps,
                     " and warmup_tokens ",
                     s.optimizer.warmup_tokens,
                     ", expected one of them");
     }},
    {"warmup_fits",
     [](const S& s) { return s.steps == 0 || s.optimizer.warmup_steps <= s.steps; },
     [](const S& s) {
       return concat("optimizer.warmup_steps: got ", s.optimizer.warmup_steps, ", expected at most steps = ", s.steps);
     }},
    {"pp_built",
     [](const S& s) { return s.parallel.pp == 1; },
     [](const S& s) {
       return concat("parallel.pp: got ", s.parallel.pp, ", expected 1; pipeline parallelism is not in this version");
     }},
    {"cp_built",
     [](const S& s) { return s.parallel.cp == 1; },
     [](const S& s) {
       return concat("parallel.cp: got ", s.parallel.cp, ", expected 1; context parallelism is not in this version");
     }},
    {"ep_built",
     [](const S& s) { return s.parallel.ep == 1; },
     [](const S& s) {
       return concat("parallel.ep: got ", s.parallel.ep, ", expected 1; expert parallelism is not in this version");
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

using R = RunConfig;
const Rule<R> kRunRules[] = {
    {"has_stages",
     [](const R& r) { return !r.stages.empty(); },
     [](const R&) { return std::string("stages: got none, expected at least one; see configs/run/ for examples"); }},
    {"stage_names",
     [](const R& r) {
       std::set<std::string> names;
       return std::all_of(r.stages.begin(), r.stages.end(), [&](const auto& s) {
         return !s.name.empty() && names.insert(s.name).second;
       });
     },
     [](const R&) {
       return std::string(
           "stages.N.name: got a name twice or an empty one, expected unique names; checkpoints are filed under them");
     }},
    {"best_needs_eval",
     [](const R& r) { return r.eval.patience == 0 || !r.eval.set.empty(); },
     [](const R& r) {
       return concat(
           "eval.patience: got ", r.eval.patience, " without eval.set, expected a held-out dataset to judge by");
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

struct ModelOnLayout {
  const ModelConfig& model;
  const ParallelConfig& parallel;
};
using M = ModelOnLayout;
bool has_tower(const M& m) {
  return m.model.tower.type != "none";
}
const Rule<M> kModelRules[] = {
    {"decoder_sizes",
     [](const M& m) {
       const auto& d = m.model.decoder;
       return d.layers > 0 && d.hidden > 0 && d.ffn > 0 && d.heads > 0 && d.kv_heads > 0;
     },
     [](const M& m) {
       const auto& d = m.model.decoder;
       return concat("model.decoder: got layers ",
                     d.layers,
                     ", hidden ",
                     d.hidden,
                     ", ffn ",
                     d.ffn,
                     ", heads ",
                     d.heads,
                     ", kv_heads ",
                     d.kv_heads,
                     ", expected all above 0; give model.path or a base: from configs/model/");
     }},
    {"kv_heads_divide",
     [](const M& m) {
       const auto& d = m.model.decoder;
       return d.kv_heads == 0 || d.heads % d.kv_heads == 0;
     },
     [](const M& m) {
       return concat("model.decoder.heads: got ",
                     m.model.decoder.heads,
                     ", expected a multiple of kv_heads = ",
                     m.model.decoder.kv_heads);
     }},
    {"heads_over_tp",
     [](const M& m) { return m.model.decoder.heads % m.parallel.tp == 0; },
     [](const M& m) {
       return concat("model.decoder.heads: got ",
                     m.model.decoder.heads,
                     ", expected a multiple of parallel.tp = ",
                     m.parallel.tp,
                     "; choose another tp");
     }},
    {"kv_heads_over_tp",
     [](const M& m) {
       const auto k = m.model.decoder.kv_heads;
       return k == 0 || k % m.parallel.tp == 0 || m.parallel.tp % k == 0;
     },
     [](const M& m) {
       return concat("model.decoder.kv_heads: got ",
                     m.model.decoder.kv_heads,
                     ", expected a multiple or a divisor of parallel.tp = ",
                     m.parallel.tp,
                     "; choose another tp");
     }},
    {"ffn_over_tp",
     [](const M& m) { return m.model.decoder.ffn % m.parallel.tp == 0; },
     [](const M& m) {
       return concat("model.decoder.ffn: got ",
                     m.model.decoder.ffn,
                     ", expected a multiple of parallel.tp = ",
                     m.parallel.tp,
                     "; choose another tp");
     }},
    {"head_dim_even",
     [](const M& m) { return m.model.decoder.head_dim % 2 == 0; },
     [](const M& m) {
       return concat(
           "model.decoder.head_dim: got ", m.model.decoder.head_dim, ", expected an even number (rotary pairs)");
     }},
    {"mrope_fits",
     [](const M& m) {
       const auto& s = m.model.decoder.mrope_section;
       return s.size() == 3 && std::accumulate(s.begin(), s.end(), int64_t{0}) == m.model.decoder.head_dim / 2;
     },
     [](const M& m) {
       return concat("model.decoder.mrope_section: got ",
                     m.model.decoder.mrope_section,
                     ", expected three numbers that sum to head_dim / 2 = ",
                     m.model.decoder.head_dim / 2);
     }},
    {"tower_sizes",
     [](const M& m) {
       const auto& t = m.model.tower;
       return !has_tower(m) || (t.depth > 0 && t.hidden > 0 && t.ffn > 0 && t.heads > 0);
     },
     [](const M& m) {
       const auto& t = m.model.tower;
       return concat("model.tower: got depth ",
                     t.depth,
                     ", hidden ",
                     t.hidden,
                     ", ffn ",
                     t.ffn,
                     ", heads ",
                     t.heads,
                     ", expected all above 0; `type: none` leaves it out");
     }},
    {"tower_heads_divide",
     [](const M& m) {
       const auto& t = m.model.tower;
       return !has_tower(m) || t.heads == 0 || (t.hidden % t.heads == 0 && t.hidden / t.heads % 4 == 0);
     },
     [](const M& m) {
       return concat("model.tower.hidden: got ",
                     m.model.tower.hidden,
                     ", expected heads = ",
                     m.model.tower.heads,
                     " times a multiple of 4 (rows and columns rotate in pairs)");
     }},
    {"tower_heads_over_tp",
     [](const M& m) { return !has_tower(m) || m.model.tower.heads % m.parallel.tp == 0; },
     [](const M& m) {
       return concat("model.tower.heads: got ",
                     m.model.tower.heads,
                     ", expected a multiple of parallel.tp = ",
                     m.parallel.tp,
                     "; choose another tp");
     }},
    {"tower_ffn_over_tp",
     [](const M& m) { return !has_tower(m) || m.model.tower.ffn % m.parallel.tp == 0; },
     [](const M& m) {
       return concat("model.tower.ffn: got ",
                     m.model.tower.ffn,
                     ", expected a multiple of parallel.tp = ",
                     m.parallel.tp,
                     "; choose another tp");
     }},
    {"connector_width",
     [](const M& m) {
       const auto out = m.model.connector.out;
       return !has_tower(m) || out == 0 || out == m.model.decoder.hidden;
     },
     [](const M& m) {
       return concat(
           "model.connector.out: got ", m.model.connector.out, ", expected decoder width ", m.model.decoder.hidden);
     }},
    {"merged_width_over_tp",
     [](const M& m) {
       return !has_tower(m) ||
              m.model.tower.hidden * m.model.connector.merge * m.model.connector.merge % m.parallel.tp == 0;
     },
     [](const M& m) {
       return concat("model.tower.hidden: got ",
                     m.model.tower.hidden,
                     ", expected merge^2 * hidden to be a multiple of parallel.tp = ",
                     m.parallel.tp);
     }},
    {"taps_in_tower",
     [](const M& m) {
       return std::all_of(
           m.model.taps.begin(), m.model.taps.end(), [&](int64_t t) { return t >= 0 && t < m.model.tower.depth; });
     },
     [](const M& m) {
       return concat("model.taps: got ", m.model.taps, ", expected tower blocks below depth = ", m.model.tower.depth);
     }},
    {"taps_in_decoder",
     [](const M& m) { return static_cast<int64_t>(m.model.taps.size()) <= m.model.decoder.layers; },
     [](const M& m) {
       return concat(
           "model.taps: got ", m.model.taps.size(), ", expected at most decoder.layers = ", m.model.decoder.layers);
     }},
    {"vision_tokens_in_vocab",
     [](const M& m) {
       return !has_tower(m) ||
              std::max(
                  {m.model.image_token, m.model.video_token, m.model.vision_start_token, m.model.vision_end_token}) <
                  m.model.decoder.vocab;
     },
     [](const M& m) {
       return concat("model.decoder.vocab: got ",
                     m.model.decoder.vocab,
                     ", expected more than the vision token ids (image_token ",
                     m.model.image_token,
                     ", video_token ",
                     m.model.video_token,
                     ")");
     }},
};

template <class Subject, size_t N>
void check_table(const Rule<Subject> (&rules)[N],
                 const Subject& subject,
                 const std::string& where,
                 Violations& violations) {
  for (const auto& rule : rules)
    if (!rule.holds(subject)) violations.lines.push_back(where + rule.message(subject));
}

}  // namespace

int64_t data_parallel_size(const ParallelConfig& p, int world_size) {
  const int64_t others = p.tp * p.pp * p.cp;
  if (p.dp > 0) {
    HANOK_REQUIRE(others * p.dp == world_size, kConfig)
        << "layout: got -np " << world_size << ", expected tp " << p.tp << " x pp " << p.pp << " x cp " << p.cp
        << " x dp " << p.dp << " = " << others * p.dp << "; start with mpirun -np " << others * p.dp
        << ", or set parallel.dp: 0 to use what is left";
    return p.dp;
  }
  HANOK_REQUIRE(world_size % others == 0, kConfig)
      << "layout: got -np " << world_size << ", expected a multiple of tp " << p.tp << " x pp " << p.pp << " x cp "
      << p.cp << " = " << others << "; change -np or the parallel keys";
  return world_size / others;
}

void check_config(const RunConfig& config, int world_size) {
  Violations violations;
  check_table(kRunRules, config, "", violations);
  for (const auto& stage : config.stages) {
    const std::string where = concat("stages.", stage.name, ".");
    check_table(kStageRules, stage, where, violations);
    for (const auto& [set, share] : stage.mixture) {
      violations.require(config.data.sets.count(set) > 0,
                         concat(where, "mixture: got ", set, ", expected a name in data.sets"));
      violations.require(share > 0, concat(where, "mixture.", set, ": got ", share, ", expected a share above 0"));
    }
    violations.require(!config.data.sets.empty(), "data.sets: got none, expected at least one dataset to train on");
    if (world_size == 0) continue;
    try {
      const int64_t dp = data_parallel_size(stage.parallel, world_size);
      const int64_t rows = dp * stage.rows_per_micro_batch;
      violations.require(stage.rows_per_step % rows == 0,
                         concat(where,
                                "rows_per_step: got ",
                                stage.rows_per_step,
                                ", expected a multiple of dp ",
                                dp,
                                " x rows_per_micro_batch ",
                                stage.rows_per_micro_batch,
                                " = ",
                                rows));
    } catch (const Error& error) {
      violations.lines.push_back(where + error.what());
    }
  }
  violations.raise();
}

void check_model(const ModelConfig& model, const ParallelConfig& parallel) {
  Violations violations;
  check_table(kModelRules, ModelOnLayout{model, parallel}, "", violations);
  violations.raise();
}

}  // namespace hanok
