#include "configs/schema/check.h"

#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "base/error.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

RunConfig valid_run() {
  RunConfig run;
  run.model.tokenizer = "tokenizer";
  run.data.sets["train"].path = "train.csv";
  run.data.sets["test"].path = "test.csv";
  run.stages.resize(1);
  run.stages[0].name = "a";
  run.stages[0].steps = 10;
  run.eval.set = "test";
  return run;
}

ModelConfig valid_model() {
  ModelConfig model;
  model.tower = {.depth = 4, .hidden = 64, .ffn = 128, .heads = 4};
  model.decoder = {.layers = 3, .hidden = 64, .ffn = 128, .heads = 4, .kv_heads = 2, .head_dim = 16};
  model.decoder.mrope_section = {4, 2, 2};
  model.taps = {1, 3};
  return model;
}

struct RunCase {
  const char* rule;
  std::function<void(RunConfig&)> spoil;
  int world_size;
  const char* message;
};
const RunCase kRunCases[] = {
    {"has_stages", [](RunConfig& r) { r.stages.clear(); }, 0, "stages: got none, expected at least one"},
    {"stage_names_unique",
     [](RunConfig& r) { r.stages.push_back(r.stages[0]); },
     0,
     "stages.N.name: got [a, a], expected every name once"},
    {"stage_names_are_folders",
     [](RunConfig& r) { r.stages[0].name = "../a"; },
     0,
     "stages.N.name: got \"../a\", expected letters, digits, '_' and '-'"},
    {"stage_names_are_folders", [](RunConfig& r) { r.stages[0].name = ""; }, 0, "stages.N.name: got \"\""},
    {"stage_names_are_folders",
     [](RunConfig& r) { r.stages[0].name = std::string(201, 'x'); },
     0,
     "expected letters, digits, '_' and '-', at most 200; checkpoints are filed under it"},
    {"name_is_a_folder",
     [](RunConfig& r) { r.name = std::string(201, 'x'); },
     0,
     "expected text without '/' that does not begin with a dot, at most 200 bytes"},
    {"name_is_a_folder", [](RunConfig& r) { r.name = "../x"; }, 0, "name: got \"../x\", expected text without '/'"},
    {"end_is_saved_where_it_is_needed",
     [](RunConfig& r) { r.save.at_end = false; },
     0,
     "save.at_end: got false with 1 stages and save.export_model: true, expected one stage and no export"},
    {"has_data",
     [](RunConfig& r) { r.data.sets.clear(), r.eval.set = ""; },
     0,
     "data.sets: got none, expected at least one dataset"},
    {"has_tokenizer",
     [](RunConfig& r) { r.model.tokenizer = ""; },
     0,
     "model.tokenizer: got none and no model.path, expected a folder with tokenizer.json"},
    {"best_needs_eval",
     [](RunConfig& r) { r.eval.set = "", r.eval.patience = 3; },
     0,
     "eval.patience: got 3 without eval.set, expected a held-out dataset"},
    {"early_stop_keeps_best",
     [](RunConfig& r) { r.eval.patience = 3, r.save.best = false; },
     0,
     "save.best: got false with eval.patience 3, expected true; early stopping goes back to the best checkpoint"},
    {"eval_set_known",
     [](RunConfig& r) { r.eval.set = "tset"; },
     0,
     "eval.set: got tset, expected a name in data.sets"},
    {"pixel_order",
     [](RunConfig& r) { r.data.min_pixels = 10, r.data.max_pixels = 5; },
     0,
     "data.min_pixels: got 10, expected at most data.max_pixels = 5"},
    {"one_length",
     [](RunConfig& r) { r.stages[0].epochs = 1; },
     0,
     "stages.a.length: got steps 10, tokens 0, epochs 1, expected exactly one of them above 0"},
    {"one_length", [](RunConfig& r) { r.stages[0].steps = 0; }, 0, "got steps 0, tokens 0, epochs 0, expected exactly"},
    {"trainable",
     [](RunConfig& r) { r.stages[0].trainable.clear(); },
     0,
     "stages.a.trainable: got no glob, expected at least one"},
    {"warmup_once",
     [](RunConfig& r) { r.stages[0].optimizer.warmup_steps = 2, r.stages[0].optimizer.warmup_tokens = 3; },
     0,
     "stages.a.optimizer: got warmup_steps 2, warmup_tokens 3, warmup_share 0, expected at most one of them above 0"},
    {"warmup_fits",
     [](RunConfig& r) { r.stages[0].optimizer.warmup_steps = 11; },
     0,
     "stages.a.optimizer.warmup_steps: got 11, expected at most steps = 10"},
    {"betas_below_one",
     [](RunConfig& r) { r.stages[0].optimizer.beta2 = 1; },
     0,
     "stages.a.optimizer: got beta1 0.9 and beta2 1, expected both below 1"},
    {"chunks_of_schedule",
     [](RunConfig& r) {
       r.stages[0].parallel.pp = 2;
       r.stages[0].parallel.chunks = 2;
     },
     0,
     "stages.a.parallel.chunks: got 2 with parallel.schedule 1f1b, expected 1 (only interleaved takes any number); set "
     "chunks: 0, or schedule: interleaved"},
    {"room_of_schedule",
     [](RunConfig& r) {
       r.stages[0].parallel.pp = 2;
       r.stages[0].parallel.pp_room = 4;
     },
     0,
     "stages.a.parallel.pp_room: got 4 with parallel.pp 2 and parallel.schedule 1f1b, expected 0, or a pipeline with "
     "zb-v or, up to pp - 1, 1f1b"},
    {"offload_of_recomputed",
     [](RunConfig& r) { r.stages[0].offload = true; },
     0,
     "offload: got true with recompute none, expected selective, all_but_attention or full"},
    {"ep_over_ranks",
     [](RunConfig& r) { r.stages[0].parallel.ep = 3; },
     4,
     "stages.a.parallel.ep: got 3, expected a divisor of dp 4 x cp 1 x tp 1; experts are cut over these ranks"},
    {"ep_over_ranks",
     [](RunConfig& r) { r.stages[0].parallel.ep = r.stages[0].parallel.etp = 4; },
     4,
     "stages.a.parallel.ep: got 4 and parallel.etp 4, expected a product that divides dp 4 x cp 1 x tp 1"},
    {"seq_len_cut",
     [](RunConfig& r) { r.stages[0].parallel.tp = 3; },
     0,
     "stages.a.seq_len: got 2048, expected a multiple of parallel.tp = 3; change it, or set parallel.sequence: false"},
    {"mixture_known",
     [](RunConfig& r) { r.stages[0].mixture["tarin"] = 1; },
     0,
     "stages.a.mixture: got tarin, expected a name in data.sets"},
    {"mixture_share",
     [](RunConfig& r) { r.stages[0].mixture["train"] = 0; },
     0,
     "stages.a.mixture.train: got 0, expected a share above 0"},
    {"layout_fits",
     [](RunConfig& r) { r.stages[0].parallel.tp = 2; },
     3,
     "stages.a.layout: got -np 3, expected a multiple of tp 2 x pp 1 x cp 1 = 2; change -np or the parallel keys"},
    {"layout_fits",
     [](RunConfig& r) { r.stages[0].parallel.dp = 2; },
     8,
     "stages.a.layout: got -np 8, expected tp 1 x pp 1 x cp 1 x dp 2 = 2; start with mpirun -np 2"},
    {"rows_over_dp",
     [](RunConfig& r) { r.stages[0].rows_per_micro_batch = 4; },
     4,
     "stages.a.rows_per_step: got 8, expected a multiple of dp 4 x rows_per_micro_batch 4 = 16"},
};

struct ModelCase {
  const char* rule;
  std::function<void(ModelConfig&)> spoil;
  int64_t tp;
  const char* message;
  int64_t cp = 1, pp = 1, ep = 1, etp = 1;
  ParallelConfig layout() const { return {.tp = tp, .pp = pp, .cp = cp, .ep = ep, .etp = etp, .context = "heads"}; }
};
void add_experts(ModelConfig& m) {
  m.decoder.type = "qwen3_moe";
  m.decoder.experts = 8;
  m.decoder.experts_per_token = 2;
  m.decoder.expert_ffn = 32;
}
const ModelCase kModelCases[] = {
    {"family_tower",
     [](ModelConfig& m) { m.family = "qwen3"; },
     1,
     "model.family: got qwen3 with model.tower.type qwen3vl_vit, expected qwen3 without a tower or qwen3_vl with one"},
    {"family_tower",
     [](ModelConfig& m) { m.family = "qwen3_vl", m.tower = {.type = "none"}, m.taps = {}; },
     1,
     "model.family: got qwen3_vl with model.tower.type none, expected qwen3 without a tower"},
    {"family_decoder",
     [](ModelConfig& m) { add_experts(m), m.family = "qwen3_vl"; },
     1,
     "model.family: got qwen3_vl with model.decoder.type qwen3_moe, expected one that ends in _moe"},
    {"experts_need_their_type",
     [](ModelConfig& m) { m.decoder.experts = 8; },
     1,
     "model.decoder.experts: got 8 with model.decoder.type qwen3_dense, expected 0; for experts set "
     "model.decoder.type"},
    {"dense_layers",
     [](ModelConfig& m) {
       add_experts(m), m.decoder.dense_layers = {0, m.decoder.layers};
     },
     1,
     "expected numbers from 0 to"},
    {"expert_sizes",
     [](ModelConfig& m) { add_experts(m), m.decoder.experts_per_token = 9; },
     1,
     "model.decoder: got experts 8, experts_per_token 9, expert_ffn 32, expected all above 0 and no more"},
    {"vl_shares_sum_to_one",
     [](ModelConfig& m) { add_experts(m), m.decoder.norm_topk = false; },
     1,
     "model.decoder.norm_topk: got false, expected true; Qwen3-VL-MoE knows no other"},
    {.rule = "experts_over_ep",
     .spoil = add_experts,
     .tp = 1,
     .message = "parallel.ep: got 3, expected a divisor of model.decoder.experts = 8; choose another ep",
     .ep = 3},
    {.rule = "experts_over_ep",
     .spoil = [](ModelConfig&) {},
     .tp = 1,
     .message = "parallel.ep: got 2, expected a divisor of model.decoder.experts = 0; this model has none",
     .ep = 2},
    {.rule = "expert_ffn_over_etp",
     .spoil = add_experts,
     .tp = 1,
     .message = "parallel.etp: got 5, expected a divisor of model.decoder.expert_ffn = 32; choose another etp",
     .etp = 5},
    {.rule = "expert_ffn_over_etp",
     .spoil = [](ModelConfig&) {},
     .tp = 1,
     .message = "parallel.etp: got 2, expected a divisor of model.decoder.expert_ffn = 0; this model has no experts",
     .etp = 2},
    {"decoder_sizes",
     [](ModelConfig& m) { m.decoder.layers = 0, m.taps = {}; },
     1,
     "model.decoder: got layers 0, hidden 64, ffn 128, heads 4, kv_heads 2, expected all above 0; give model.path"},
    {"kv_heads_divide",
     [](ModelConfig& m) { m.decoder.kv_heads = 3; },
     1,
     "model.decoder.heads: got 4, expected a multiple of kv_heads = 3"},
    {"heads_over_cp",
     [](ModelConfig&) {},
     2,
     "parallel.context: got heads with 4 query and 2 key/value heads over tp = 2, expected heads of a rank that cp = 4",
     4},
    {"heads_over_tp",
     [](ModelConfig& m) { m.tower.heads = 8; },
     8,
     "model.decoder.heads: got 4, expected a multiple of parallel.tp = 8; choose another tp"},
    {"kv_heads_over_tp",
     [](ModelConfig& m) { m.decoder.heads = 12, m.decoder.kv_heads = 6, m.tower.heads = 8; },
     4,
     "model.decoder.kv_heads: got 6, expected a multiple or a divisor of parallel.tp = 4"},
    {"ffn_over_tp",
     [](ModelConfig& m) { m.decoder.ffn = 129; },
     2,
     "model.decoder.ffn: got 129, expected a multiple of parallel.tp = 2"},
    {"head_dim_even",
     [](ModelConfig& m) { m.decoder.head_dim = 17; },
     1,
     "model.decoder.head_dim: got 17, expected an even number (rotary pairs)"},
    {"mrope_fits",
     [](ModelConfig& m) {
       m.decoder.mrope_section = {4, 2, 3};
     },
     1,
     "model.decoder.mrope_section: got [4, 2, 3], expected three numbers that sum to head_dim / 2 = 8"},
    {"tower_sizes",
     [](ModelConfig& m) { m.tower.ffn = 0; },
     1,
     "model.tower: got depth 4, hidden 64, ffn 0, heads 4, expected all above 0; `type: none` leaves it out"},
    {"tower_channels",
     [](ModelConfig& m) { m.tower.channels = 4; },
     1,
     "model.tower.channels: got 4, expected 3; pictures are prepared as red, green and blue"},
    {"tower_heads_divide",
     [](ModelConfig& m) { m.tower.hidden = 40; },
     1,
     "model.tower.hidden: got 40, expected heads = 4 times a multiple of 4"},
    {"tower_heads_over_tp",
     [](ModelConfig& m) { m.decoder.heads = 8; },
     8,
     "model.tower.heads: got 4, expected a multiple of parallel.tp = 8"},
    {"tower_ffn_over_tp",
     [](ModelConfig& m) { m.tower.ffn = 129; },
     2,
     "model.tower.ffn: got 129, expected a multiple of parallel.tp = 2"},
    {"connector_width",
     [](ModelConfig& m) { m.connector.out = 96; },
     1,
     "model.connector.out: got 96, expected decoder width 64"},
    {"merged_width_over_tp",
     [](ModelConfig& m) {
       m.connector.merge = 1, m.tower.heads = 12, m.tower.hidden = 12 * 4, m.tower.ffn = 32 * 3;
       m.decoder.heads = m.decoder.kv_heads = 32, m.decoder.ffn = 32;
     },
     32,
     "model.tower.hidden: got 48, expected merge^2 * hidden to be a multiple of parallel.tp = 32"},
    {"taps_in_tower",
     [](ModelConfig& m) {
       m.taps = {1, 4};
     },
     1,
     "model.taps: got [1, 4], expected tower blocks below depth = 4"},
    {"taps_rise",
     [](ModelConfig& m) {
       m.taps = {3, 1};
     },
     1,
     "model.taps: got [3, 1], expected rising tower blocks, each once"},
    {"taps_rise",
     [](ModelConfig& m) {
       m.taps = {1, 1};
     },
     1,
     "model.taps: got [1, 1], expected rising tower blocks, each once"},
    {"taps_in_decoder",
     [](ModelConfig& m) { m.decoder.layers = 1; },
     1,
     "model.taps: got 2, expected at most decoder.layers = 1"},
    {"vision_tokens_in_vocab",
     [](ModelConfig& m) { m.decoder.vocab = 1000; },
     1,
     "model.decoder.vocab: got 1000, expected more than the vision token ids (image_token 151655"},
    {"in_range",
     [](ModelConfig& m) { m.decoder.hidden = 1 << 30; },
     1,
     "model.decoder.hidden: got 1073741824, expected from 0 to 1048576"},
};

void expect_found(const std::vector<Violation>& found, const std::string& rule, const std::string& message) {
  bool is_found = false;
  std::string all;
  for (const Violation& violation : found) {
    is_found = is_found || (violation.rule == rule && violation.message.find(message) != std::string::npos);
    all += concat("\n  ", violation.rule, " -> ", violation.message);
  }
  EXPECT_TRUE(is_found) << "expected " << rule << " -> " << message << "\ngot:" << all;
}

TEST(Check, ValidConfigsPass) {
  EXPECT_NO_THROW(check_config(valid_run(), 0));
  EXPECT_NO_THROW(check_config(valid_run(), 8));
  for (const int64_t tp : {1, 2, 4}) EXPECT_NO_THROW(check_model(valid_model(), {.tp = tp}));
  ModelConfig text_only = valid_model();
  text_only.tower = {.type = "none"};
  text_only.taps = {};
  text_only.decoder.vocab = 1000;
  EXPECT_NO_THROW(check_model(text_only, {}));
}

TEST(Check, EveryRuleOfARunIsTriggeredAndSaysWhatIsWrong) {
  for (const RunCase& c : kRunCases) {
    RunConfig run = valid_run();
    c.spoil(run);
    expect_found(violations(run, c.world_size), c.rule, c.message);
    EXPECT_THROW(check_config(run, c.world_size), Error) << c.rule;
  }
}

TEST(Check, EveryRuleOfAModelIsTriggeredAndSaysWhatIsWrong) {
  for (const ModelCase& c : kModelCases) {
    ModelConfig model = valid_model();
    c.spoil(model);
    expect_found(violations(model, c.layout()), c.rule, c.message);
    EXPECT_THROW(check_model(model, c.layout()), Error) << c.rule;
  }
}

TEST(Check, NoRuleIsWithoutATest) {
  std::set<std::string> tested;
  for (const RunCase& c : kRunCases) tested.insert(c.rule);
  for (const ModelCase& c : kModelCases) tested.insert(c.rule);
  const auto names = rule_names();
  EXPECT_EQ(tested, std::set<std::string>(names.begin(), names.end()));
}

TEST(Check, AllViolationsAreToldAtOnce) {
  RunConfig run = valid_run();
  run.eval.set = "x";
  run.stages[0].steps = 0;
  run.stages[0].optimizer.beta2 = 1;
  EXPECT_EQ(message_of(ErrorKind::kConfig, [&] { check_config(run, 0); })
                .find("3 contradictions in the config:\n  eval.set: got x"),
            0u);
}

TEST(Check, DataParallelSizeIsWhatTheOtherAxesLeave) {
  EXPECT_EQ(data_parallel_size({.tp = 2}, 8), 4);
  EXPECT_EQ(data_parallel_size({.tp = 2, .dp = 4}, 8), 4);
  EXPECT_THROW(data_parallel_size({.tp = 2, .dp = 2}, 8), Error);
  EXPECT_THROW(data_parallel_size({.tp = 3}, 8), Error);
}

}  // namespace
}  // namespace hanok
