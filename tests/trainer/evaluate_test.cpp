#include "trainer/evaluate.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "dataio/file_io.h"
#include "model/loss/cross_entropy.h"
#include "tests/support/errors.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/data.h"
#include "trainer/forced_choice.h"
#include "trainer/run_stages.h"
#include "trainer/step.h"

namespace hanok {
namespace {

using nlohmann::json;

TEST(Wilson, AgreesWithKnownIntervals) {
  double low = 0, high = 0;
  wilson_interval(8, 10, low, high);  // statsmodels proportion_confint(8, 10, method="wilson")
  EXPECT_NEAR(low, 0.49016247, 1e-6);
  EXPECT_NEAR(high, 0.94331782, 1e-6);
  wilson_interval(0, 20, low, high);
  EXPECT_EQ(low, 0);
  EXPECT_NEAR(high, 0.16112515, 1e-6);
  wilson_interval(0, 0, low, high);
  EXPECT_EQ(low, 0);
  EXPECT_EQ(high, 1);
}

TEST(ChoiceOrder, GivesEveryOrderOnceBeforeItRepeats) {
  for (const int64_t sample : {0, 7, 123456}) {
    std::set<std::vector<int>> seen;
    for (int shuffle = 0; shuffle < 24; ++shuffle) seen.insert(choice_order(4, shuffle, 1, sample));
    EXPECT_EQ(seen.size(), 24u);
  }
  for (const int choices : {2, 3}) {  // no order weighs more than another, the given one included
    std::map<std::vector<int>, int> times;
    for (int shuffle = 0; shuffle < 24; ++shuffle) ++times[choice_order(choices, shuffle, 1, 9)];
    for (const auto& [order, count] : times) EXPECT_EQ(count, choices == 2 ? 12 : 4) << choices;
  }
  EXPECT_EQ(choice_order(4, 0, 1, 5), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_NE(choice_order(4, 1, 1, 5), choice_order(4, 0, 1, 5));
  EXPECT_EQ(choice_order(2, 1, 1, 5), (std::vector<int>{1, 0}));
  EXPECT_EQ(choice_order(1, 3, 1, 5), (std::vector<int>{0}));
  std::set<std::vector<int>> over_samples;
  for (int64_t sample = 0; sample < 100; ++sample) over_samples.insert(choice_order(4, 1, 1, sample));
  EXPECT_GT(over_samples.size(), 15u);
}

JudgedSample judged(std::vector<double> probabilities, int answer) {
  JudgedSample sample;
  sample.probabilities = std::move(probabilities);
  sample.answer = answer;
  return sample;
}

TEST(Summary, CountsConfusionAndCalibration) {
  std::vector<JudgedSample> samples = {
      judged({0.95, 0.05}, 0), judged({0.91, 0.09}, 1), judged({0.3, 0.7}, 1), judged({0.6, 0.4}, -1), {}};
  samples[4].weighted_nll = 6;
  samples[4].weight = 3;
  samples[4].num_labels = 3;
  const EvalResult result = summarise(samples);
  EXPECT_EQ(result.num_samples, 5);
  EXPECT_EQ(result.num_choice_samples, 4);
  EXPECT_EQ(result.num_answered, 3);
  EXPECT_EQ(result.num_correct, 2);
  EXPECT_EQ(result.loss, 2);
  EXPECT_EQ(result.confusion, (std::vector<std::vector<int64_t>>{{1, 0}, {1, 1}}));
  EXPECT_EQ(result.reliability[9].count, 2);
  EXPECT_NEAR(result.reliability[9].confidence, 0.93, 1e-12);
  EXPECT_NEAR(result.reliability[9].accuracy, 0.5, 1e-12);
  EXPECT_NEAR(result.expected_calibration_error, (2 * 0.43 + 1 * 0.3) / 3, 1e-12);
}

TEST(Summary, WhatIsNotFiniteIsNeverAScore) {
  const double none = std::numeric_limits<double>::quiet_NaN();
  const EvalResult result = summarise({judged({0.6, 0.4}, 0), judged({none, none}, 0)});
  EXPECT_EQ(result.num_not_finite, 1);
  EXPECT_EQ(result.num_answered, 2);
  EXPECT_TRUE(std::isnan(result.accuracy));
  EXPECT_TRUE(json::parse(to_json(result))["accuracy"].is_null());
  EXPECT_NE(to_text(result).find("1 of them without finite numbers"), std::string::npos);
  EXPECT_ERROR(error_of([&] { require_finite(result); }), ErrorKind::kNumeric, "for 1 of 2 samples");
}

TEST(Summary, WithoutAnswersThereIsNoAccuracy) {
  const json out = json::parse(to_json(summarise({judged({0.6, 0.4}, -1)})));
  EXPECT_EQ(out["num_choice_samples"], 1);
  EXPECT_FALSE(out.contains("accuracy"));
  EXPECT_FALSE(out.contains("loss"));
}

TEST(Lines, AreQuotedWhereTheirFormatAsksForIt) {
  const JudgedSample sample = judged({0.2, 0.5, 0.3}, 2);
  EXPECT_EQ(submission_line("q1", sample), "q1,b");
  EXPECT_EQ(submission_line("a,\"b\"", sample), "\"a,\"\"b\"\"\",b");
  const json line = json::parse(dump_line("a \"quoted\"\nid", sample));
  EXPECT_EQ(line["id"], "a \"quoted\"\nid");
  EXPECT_NEAR(line["margin"].get<double>(), 0.2, 1e-12);
  EXPECT_EQ(line["choice"], "b");
  EXPECT_EQ(line["answer"], "c");
  EXPECT_FALSE(json::parse(dump_line("x", JudgedSample{})).contains("choices"));
}

/// A random model and packed digits, evaluated on a layout of threads.
class Evaluation : public testing::Test {
 protected:
  EvalResult run(int dp, int tp, const std::string& set, EvalOptions options = {}) {
    return run_on({.dp = dp, .tp = tp}, set, std::move(options)).front();
  }
  /// What each rank returns.
  std::vector<EvalResult> run_on(const MeshShape& shape,
                                 const std::string& set,
                                 EvalOptions options = {},
                                 ContextWay way = ContextWay::kAuto) {
    at::set_num_threads(shape.world());  // one a rank
    std::vector<EvalResult> results(shape.world());
    run_on_threads(shape.world(), [&](World& world) {
      const Groups groups = make_groups(world, Mesh(shape), shape.tp > 1);
      RunConfig config = tiny_.config();
      config.eval.set = set;
      const SampleEncoder encoder = make_encoder(config);
      const auto datasets = open_datasets(config, encoder, groups);
      Vlm model(config.model, groups, at::kFloat, at::kCPU);
      model.set_execution({.context = way});
      initialise(model, 5);
      EvalOptions own = options;
      own.seq_len = 400;
      own.batch = {.seq_len = 400, .pad_multiple = shape.tp * shape.cp, .vision = encoder.vision};
      results[world.rank()] = evaluate(model, *datasets.at(set), encoder, own);
    });
    return results;
  }
  std::string dump(int dp, int tp, const std::string& set, int shuffles = 1) {
    const std::string file = tiny_.file("dump.jsonl");
    run(dp, tp, set, {.shuffles = shuffles, .dump = file});
    return read_file(file);
  }
  static std::vector<json> lines(const std::string& text) {
    std::vector<json> out;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) out.push_back(json::parse(line));
    return out;
  }
  const TinyRun tiny_{"evaluation"};
};

TEST_F(Evaluation, IsTheSameInEveryBitOnAnyNumberOfDataParallelRanks) {
  const std::string one = dump(1, 1, "heldout", 2);
  EXPECT_EQ(dump(2, 1, "heldout", 2), one);
  EXPECT_EQ(dump(3, 1, "heldout", 2), one);
  EXPECT_EQ(lines(one).size(), 16u);
}

TEST_F(Evaluation, IsTheSameInEveryBitOnAPipelineAndOnEveryRankOfIt) {
  const auto dump_of = [&](const MeshShape& shape) {
    const std::string file = tiny_.file("dump.jsonl");
    std::vector<EvalResult> results = run_on(shape, "heldout", {.shuffles = 2, .dump = file});
    for (EvalResult& result : results) result.seconds = 0;
    for (const EvalResult& result : results) EXPECT_EQ(to_json(result), to_json(results.front()));
    return read_file(file);
  };
  const std::string one = dump_of({});
  EXPECT_EQ(dump_of({.pp = 2}), one);
  EXPECT_EQ(dump_of({.pp = 3, .dp = 2}), one);
}

TEST_F(Evaluation, TensorParallelRanksAgreeWithinRounding) {
  const std::vector<json> one = lines(dump(1, 1, "heldout")), two = lines(dump(1, 2, "heldout"));
  ASSERT_EQ(one.size(), two.size());
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i]["id"], two[i]["id"]);
    for (size_t k = 0; k < one[i]["label_logprobs"].size(); ++k)
      EXPECT_NEAR(one[i]["label_logprobs"][k].get<double>(), two[i]["label_logprobs"][k].get<double>(), 1e-5);
  }
}

// Two labels of an answer may lie on different ranks, and so may the row that predicts its letter.
TEST_F(Evaluation, ContextParallelRanksAgreeWithinRoundingAndAllKnowTheResult) {
  const EvalResult one = run(1, 1, "heldout", {.rows_per_forward = 2, .shuffles = 2, .dump = tiny_.file("one.jsonl")});
  for (const MeshShape& shape : {MeshShape{.cp = 2}, {.cp = 4}, {.cp = 2, .tp = 2}, {.dp = 2, .cp = 2}}) {
    for (const ContextWay way : {ContextWay::kGather, ContextWay::kRing}) {
      const EvalOptions options{.rows_per_forward = 2, .shuffles = 2, .dump = tiny_.file("dump.jsonl")};
      for (const EvalResult& got : run_on(shape, "heldout", options, way)) {
        ASSERT_EQ(got.samples.size(), one.samples.size());
        EXPECT_EQ(got.num_labels, one.num_labels);
        EXPECT_EQ(got.num_correct, one.num_correct);
        EXPECT_NEAR(got.loss, one.loss, 1e-5);
        for (size_t i = 0; i < one.samples.size(); ++i) {
          EXPECT_EQ(got.samples[i].label_ids, one.samples[i].label_ids);
          for (size_t k = 0; k < one.samples[i].label_logprobs.size(); ++k)
            EXPECT_NEAR(got.samples[i].label_logprobs[k], one.samples[i].label_logprobs[k], 1e-5);
          for (size_t c = 0; c < one.samples[i].probabilities.size(); ++c)
            EXPECT_NEAR(got.samples[i].probabilities[c], one.samples[i].probabilities[c], 1e-5);
        }
      }
    }
  }
}

TEST_F(Evaluation, ProbabilitiesAreThoseOfTheLetterTokens) {
  const RunConfig config = tiny_.config();
  const SampleEncoder encoder = make_encoder(config);
  const Groups groups = make_single_groups();
  const auto datasets = open_datasets(config, encoder, groups);
  const Dataset& dataset = *datasets.at("heldout");
  Vlm model(config.model, groups, at::kFloat, at::kCPU);
  initialise(model, 5);
  const std::vector<json> got = lines(dump(1, 1, "heldout"));
  const at::NoGradGuard no_grad;
  for (const int64_t index : {0, 9}) {
    const Sample sample = dataset.read(index);
    const Batch batch = make_batch({sample}, {{0, index}}, {.vision = encoder.vision});
    const Tensor y = model.forward(model_input(batch, model)).y_TD;
    const Tensor logprobs = at::log_softmax(at::mm(y, model.head().weight_VD.t()), 1);
    // The byte tokenizer has one token a letter: token 'a' + i, predicted just before the answer.
    const int64_t row = sample.labels[0].begin - 1;
    const Tensor letters = logprobs[row].slice(0, 'a', 'a' + 4).softmax(0);
    for (int64_t c = 0; c < 4; ++c)
      EXPECT_NEAR(got[index]["choices"][c].get<double>(), letters[c].item<double>(), 1e-5);
    EXPECT_EQ(got[index]["label_ids"][0].get<int64_t>(), sample.tokens[row + 1]);
    EXPECT_NEAR(
        got[index]["label_logprobs"][0].get<double>(), logprobs[row][sample.tokens[row + 1]].item<double>(), 1e-5);
  }
}

TEST_F(Evaluation, AllOrdersTogetherDoNotDependOnTheOrderInTheFile) {
  // Averaged over all 24 orders, a choice is judged by its text alone: turn the file's choices round, and the
  // probabilities turn with them.
  const std::vector<json> straight = lines(dump(1, 1, "heldout", 24));
  std::ifstream in(tiny_.file("heldout.csv"));
  std::string turned, line;
  while (std::getline(in, line)) {
    std::vector<std::string> fields;
    bool quoted = false;
    std::string field;
    for (const char c : line) {
      if (c == '"') quoted = !quoted;
      if (c == ',' && !quoted) {
        fields.push_back(field);
        field.clear();
      } else {
        field += c;
      }
    }
    fields.push_back(field);
    if (fields[0] != "id") {
      std::swap(fields[3], fields[6]);
      std::swap(fields[4], fields[5]);
      fields[7] = std::string(1, static_cast<char>('a' + 'd' - fields[7][0]));
    }
    for (size_t i = 0; i < fields.size(); ++i) turned += (i ? "," : "") + fields[i];
    turned += "\n";
  }
  in.close();
  std::ofstream(tiny_.file("heldout.csv")) << turned;
  const std::vector<json> other = lines(dump(1, 1, "heldout", 24));
  for (size_t i = 0; i < straight.size(); ++i)
    for (int c = 0; c < 4; ++c)
      EXPECT_NEAR(straight[i]["choices"][c].get<double>(), other[i]["choices"][3 - c].get<double>(), 1e-6) << i;
}

TEST_F(Evaluation, APredictionSetGivesASubmissionAndNoAccuracy) {
  const std::string file = tiny_.file("submission.csv");
  const EvalResult result = run(2, 1, "predict", {.submission = file});
  EXPECT_EQ(result.num_choice_samples, 6);
  EXPECT_EQ(result.num_answered, 0);
  EXPECT_EQ(result.num_labels, 0);
  std::istringstream stream(read_file(file));
  std::string line;
  std::getline(stream, line);
  EXPECT_EQ(line, "id,answer");
  int rows = 0;
  for (; std::getline(stream, line); ++rows) {
    const char letter = line.back();
    EXPECT_TRUE(letter >= 'a' && letter <= 'd') << line;
    EXPECT_TRUE(line.starts_with("digit-")) << line;
  }
  EXPECT_EQ(rows, 6);
}

TEST_F(Evaluation, TheSameQuestionIsAnsweredAlikeWithAndWithoutItsAnswer) {
  const std::vector<json> with = lines(dump(1, 1, "heldout")), without = lines(dump(1, 1, "predict"));
  for (const json& line : without) {
    for (const json& other : with) {
      if (other["id"] != line["id"]) continue;
      for (int c = 0; c < 4; ++c)
        EXPECT_NEAR(other["choices"][c].get<double>(), line["choices"][c].get<double>(), 1e-5) << line["id"];
    }
    EXPECT_TRUE(line["label_ids"].empty());
    EXPECT_FALSE(line.contains("answer"));
  }
}

TEST_F(Evaluation, AStopIsAgreedOnAndSaysSo) {
  int asked = 0;
  EXPECT_FALSE(run(1, 1, "heldout", {.stop_requested = [&] { return ++asked > 2; }}).complete);
}

}  // namespace
}  // namespace hanok
