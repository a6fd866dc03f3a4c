// Rules about the model's numbers and the layout they are cut over.
#include <algorithm>
#include <functional>
#include <numeric>

#include "base/error.h"
#include "configs/schema/rules.h"
#include "configs/schema/visit.h"

namespace hanok {
namespace {

struct ModelOnLayout {
  const ModelConfig& model;
  const ParallelConfig& parallel;
};
using M = ModelOnLayout;
bool has_tower(const M& m) {
  return m.model.tower.type != "none";
}
const Rule<M> kModelRules[] = {
    {"family_tower",
     [](const M& m) { return has_tower(m) == (m.model.known_family().find("_vl") != std::string::npos); },
     [](const M& m) {
       return concat("model.family: got ",
                     m.model.family,
                     " with model.tower.type ",
                     m.model.tower.type,
                     ", expected qwen3 without a tower or qwen3_vl with one; set model.family: auto");
     }},
    {"family_decoder",
     [](const M& m) { return m.model.decoder.is_moe() == m.model.known_family().ends_with("_moe"); },
     [](const M& m) {
       return concat("model.family: got ",
                     m.model.family,
                     " with model.decoder.type ",
                     m.model.decoder.type,
                     ", expected one that ends in _moe for qwen3_moe and no other; set model.family: auto");
     }},
    {"experts_need_their_type",
     [](const M& m) { return m.model.decoder.is_moe() || m.model.decoder.experts == 0; },
     [](const M& m) {
       return concat("model.decoder.experts: got ",
                     m.model.decoder.experts,
                     " with model.decoder.type ",
                     m.model.decoder.type,
                     ", expected 0; for experts set model.decoder.type: qwen3_moe");
     }},
    {"dense_layers",
     [](const M& m) {
       const auto& d = m.model.decoder;
       return std::all_of(
           d.dense_layers.begin(), d.dense_layers.end(), [&](int64_t i) { return i >= 0 && i < d.layers; });
     },
     [](const M& m) {
       return concat("model.decoder.dense_layers: got ",
                     m.model.decoder.dense_layers,
                     ", expected numbers from 0 to ",
                     m.model.decoder.layers - 1,
                     ", the layers that there are");
     }},
    {"expert_sizes",
     [](const M& m) {
       const auto& d = m.model.decoder;
       return !d.is_moe() ||
              (d.experts > 0 && d.expert_ffn > 0 && d.experts_per_token > 0 && d.experts_per_token <= d.experts);
     },
     [](const M& m) {
       const auto& d = m.model.decoder;
       return concat("model.decoder: got experts ",
                     d.experts,
                     ", experts_per_token ",
                     d.experts_per_token,
                     ", expert_ffn ",
                     d.expert_ffn,
                     ", expected all above 0 and no more experts for a token than there are");
     }},
    {"vl_shares_sum_to_one",
     [](const M& m) { return m.model.decoder.norm_topk || m.model.known_family() != "qwen3_vl_moe"; },
     [](const M&) {
       return std::string("model.decoder.norm_topk: got false, expected true; Qwen3-VL-MoE knows no other");
     }},
    {"experts_over_ep",
     [](const M& m) {
       return m.parallel.ep == 1 || (m.model.decoder.is_moe() && m.model.decoder.experts % m.parallel.ep == 0);
     },
     [](const M& m) {
       return concat("parallel.ep: got ",
                     m.parallel.ep,
                     ", expected a divisor of model.decoder.experts = ",
                     m.model.decoder.experts,
                     m.model.decoder.is_moe() ? "; choose another ep" : "; this model has none: leave ep at 1");
     }},
    {"expert_ffn_over_etp",
     [](const M& m) {
       return m.parallel.etp == 1 || (m.model.decoder.is_moe() && m.model.decoder.expert_ffn % m.parallel.etp == 0);
     },
     [](const M& m) {
       return concat("parallel.etp: got ",
                     m.parallel.etp,
                     ", expected a divisor of model.decoder.expert_ffn = ",
                     m.model.decoder.expert_ffn,
                     m.model.decoder.is_moe() ? "; choose another etp" : "; this model has no experts: leave etp at 1");
     }},
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
    {"heads_over_cp",
     [](const M& m) {
       const ParallelConfig& p = m.parallel;
       const auto& d = m.model.decoder;
       if (p.context != "heads" || p.cp == 1 || d.heads % p.tp != 0) return true;
       return heads_fit_over_cp(d.heads / p.tp, std::max<int64_t>(1, d.kv_heads / p.tp), p.cp);
     },
     [](const M& m) {
       return concat("parallel.context: got heads with ",
                     m.model.decoder.heads,
                     " query and ",
                     m.model.decoder.kv_heads,
                     " key/value heads over tp = ",
                     m.parallel.tp,
                     ", expected heads of a rank that cp = ",
                     m.parallel.cp,
                     " divides (key/value heads: or that divide it); set parallel.context: gather or ring");
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
       return s.size() == 3 && std::all_of(s.begin(), s.end(), [](int64_t n) { return n >= 0 && n <= 1 << 14; }) &&
              std::accumulate(s.begin(), s.end(), int64_t{0}) == m.model.decoder.head_dim / 2;
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
    {"tower_channels",
     [](const M& m) { return !has_tower(m) || m.model.tower.channels == 3; },
     [](const M& m) {
       return concat("model.tower.channels: got ",
                     m.model.tower.channels,
                     ", expected 3; pictures are prepared as red, green and blue");
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
    {"taps_rise",
     [](const M& m) {
       return std::adjacent_find(m.model.taps.begin(), m.model.taps.end(), std::greater_equal<>()) ==
              m.model.taps.end();
     },
     [](const M& m) { return concat("model.taps: got ", m.model.taps, ", expected rising tower blocks, each once"); }},
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

/// The ranges of config.h once more: these numbers may come from a config.json.
template <class T>
void check_ranges(const T& group, const std::string& prefix, std::vector<Violation>& out) {
  T::fields(group, [&](const char* key, const auto& member, const char*, const FieldRule& rule = {}) {
    using Member = std::decay_t<decltype(member)>;
    if constexpr (Group<Member>) {
      check_ranges(member, join(prefix, key), out);
    } else if constexpr (std::is_arithmetic_v<Member> && !std::is_same_v<Member, bool>) {
      const double value = static_cast<double>(member);
      if (value >= rule.min && value <= rule.max) return;
      out.push_back(
          {"in_range", concat(join(prefix, key), ": got ", member, ", expected from ", rule.min, " to ", rule.max)});
    }
  });
}

}  // namespace

bool heads_fit_over_cp(int64_t heads, int64_t kv_heads, int64_t ranks) {
  return heads % ranks == 0 && (kv_heads % ranks == 0 || ranks % kv_heads == 0);
}

std::vector<std::string> model_rule_names() {
  std::vector<std::string> out;
  append_names(kModelRules, out);
  out.emplace_back("in_range");
  return out;
}

std::vector<Violation> violations(const ModelConfig& model, const ParallelConfig& parallel) {
  std::vector<Violation> out;
  check_ranges(model, "model", out);
  if (!out.empty()) return out;  // the rules below multiply and divide
  check_table(kModelRules, ModelOnLayout{model, parallel}, "", out);
  return out;
}

}  // namespace hanok
