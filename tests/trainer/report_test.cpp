#include "trainer/report.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "dataio/file_io.h"
#include "dataio/image.h"
#include "parallel/groups.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/data.h"
#include "trainer/report_examples.h"
#include "trainer/report_page.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json step_line(const std::string& stage, int64_t step, double loss) {
  return {{"kind", "step"},
          {"stage", stage},
          {"step", step},
          {"num_steps", 10},
          {"loss", loss},
          {"grad_norm", 0.5},
          {"lr", 1e-3},
          {"tokens_per_s", 1000.},
          {"tokens", 500},
          {"step_s", 0.5},
          {"applied", true},
          {"fill", 1},
          {"data_wait_s", 0.1},
          {"memory_peak_gib", 2}};
}

json evaluation_line(const std::string& stage, int64_t step) {
  return {{"kind", "evaluation"},
          {"stage", stage},
          {"step", step},
          {"loss", 0.7},
          {"accuracy", 0.75},
          {"accuracy_low", 0.6},
          {"accuracy_high", 0.85},
          {"num_answered", 4},
          {"num_correct", 3},
          {"num_samples", 4},
          {"confusion", {{2, 1}, {0, 1}}}};
}

size_t count(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

std::string page_of(const RunConfig& config, const RunHistory& history, const std::string& examples = "") {
  return report_html(
      {.config = config, .history = history, .status = "running", .written = "now", .examples = examples});
}

RunConfig two_stages() {
  RunConfig config;
  config.name = "two";
  config.out = "runs/two";
  config.stages = {{.name = "align"}, {.name = "all"}};
  return config;
}

JudgedSample judged(std::vector<double> probabilities, int answer) {
  JudgedSample sample;
  sample.probabilities = std::move(probabilities);
  sample.answer = answer;
  return sample;
}

TEST(RunHistory, StagesLieEndToEnd) {
  RunHistory history;
  for (int step = 1; step <= 3; ++step) history.add(step_line("align", step, 5));
  history.add(evaluation_line("align", 3));
  EXPECT_EQ(history.begin_of("all"), 3);
  history.add(step_line("all", 1, 4));
  ASSERT_EQ(history.stages.size(), 2u);
  EXPECT_EQ(history.steps.back().x, 4);
  EXPECT_EQ(history.stages[0].tokens, 1500);
  EXPECT_EQ(history.evaluations[0].confusion, (std::vector<std::vector<int64_t>>{{2, 1}, {0, 1}}));
}

TEST(RunHistory, LinesThatAreNoneAreLeftOut) {
  RunHistory history;
  for (const char* text : {"3", "[]", "{}", R"({"stage": 1, "step": 1})", R"({"stage": "a", "step": "1"})"})
    history.add(json::parse(text));
  EXPECT_TRUE(history.steps.empty() && history.stages.empty());
  history.add(json::parse(R"({"stage": "a", "step": 1, "loss": "x", "kind": 7, "applied": 3})"));
  history.add(json::parse(R"({"stage": "a", "step": 1, "kind": "evaluation", "confusion": [[1, 2], 3]})"));
  EXPECT_TRUE(std::isnan(history.steps.at(0).loss));
  EXPECT_TRUE(history.evaluations.at(0).confusion.empty());
  EXPECT_NE(page_of(two_stages(), history).find("</html>"), std::string::npos);
}

TEST(ReportPage, HasChartsAndTablesOfWhatWasMeasured) {
  RunHistory history;
  for (int step = 1; step <= 3; ++step) history.add(step_line("align", step, 5));
  const std::string without = page_of(two_stages(), history);
  EXPECT_EQ(count(without, "<svg"), 4u);
  EXPECT_EQ(without.find("Held-out"), std::string::npos);
  EXPECT_NE(without.find("not begun"), std::string::npos) << "the second stage";
  history.add(evaluation_line("align", 3));
  const std::string with = page_of(two_stages(), history);
  EXPECT_EQ(count(with, "<svg"), 5u);
  EXPECT_NE(with.find("75.0 %"), std::string::npos);
  EXPECT_NE(with.find("3 / 4"), std::string::npos);
  EXPECT_NE(with.find("--share:0.667\">2<"), std::string::npos) << "two of three answers a";
  EXPECT_NE(with.find("mpirun -np 1 trainer --config runs/two/config.yaml"), std::string::npos);
  EXPECT_NE(page_of(two_stages(), {}).find("No step has been taken yet"), std::string::npos);
}

TEST(ReportPage, EscapesWhateverUsersWrote) {
  const std::string evil = "<script>alert(1)</script>\"'&";
  RunConfig config = two_stages();
  config.name = config.stages[0].name = evil;
  config.out = "it's $(a) folder";
  config.eval.set = evil;
  RunHistory history;
  history.add(step_line(evil, 1, 5));
  history.add(evaluation_line(evil, 1));
  ReportExample example{.id = evil, .pictures = {evil}, .num_pictures = 1, .question = evil, .choices = {evil, evil}};
  example.probabilities = {0.5, 0.5};
  ReportExample free{.id = evil, .question = evil, .reference = evil};
  const std::string page = page_of(config, history, examples_html(evil, 1, {example, free}));
  EXPECT_EQ(page.find("<script"), std::string::npos);
  EXPECT_GE(count(page, "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"), 10u);
  EXPECT_NE(page.find("&#39;it&#39;\\&#39;&#39;s $(a) folder/config.yaml&#39;"), std::string::npos) << "for the shell";
}

TEST(ReportPage, OfHundredsOfThousandsOfStepsIsSmallAndSoon) {
  RunHistory history;
  for (int step = 1; step <= 400'000; ++step) {
    history.steps.push_back({.x = double(step), .loss = std::sin(step * 1e-4), .grad_norm = 1, .lr = 1e-3});
    if (step % 1000 == 0) history.evaluations.push_back({.stage = "align", .step = step, .x = double(step), .loss = 1});
  }
  history.stages.push_back({.name = "align", .begin = 0, .end = 400'000});
  const auto began = std::chrono::steady_clock::now();
  EXPECT_LT(page_of(two_stages(), history).size(), 400'000u);
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count(), 5);
}

TEST(Examples, ShowTheChoiceTheAnswerAndTheirProbabilities) {
  ReportExample wrong{.id = "q1", .question = "which?", .choices = {"one", "two", "three"}, .answer = 2};
  wrong.probabilities = {0.1, 0.7, 0.2};
  const std::string html = examples_html("all", 3, {wrong});
  EXPECT_NE(html.find("class=\"card bad\""), std::string::npos);
  EXPECT_NE(html.find("<li class=\"wrong\" style=\"--share:0.700\"><span>b</span><span>two<i>&#10007; chosen</i>"),
            std::string::npos)
      << html;
  EXPECT_NE(html.find("<li class=\"gold\" style=\"--share:0.200\"><span>c</span><span>three<i>right answer</i>"),
            std::string::npos);
  wrong.answer = 1;
  EXPECT_NE(examples_html("all", 3, {wrong}).find("class=\"card good\""), std::string::npos);
}

TEST(Examples, TellingOnesAreTheSurestMistakesFirst) {
  const std::vector<JudgedSample> samples = {judged({0.9, 0.1}, 0),
                                             judged({0.6, 0.4}, 1),
                                             judged({0.2, 0.8}, 0),
                                             judged({0.51, 0.49}, 0),
                                             judged({0.7, 0.3}, 0),
                                             judged({0.99, 0.01}, -1)};
  EXPECT_EQ(telling_samples(samples, 4), (std::vector<int64_t>{2, 1, 3, 0}));
  EXPECT_EQ(telling_samples(samples, 12), (std::vector<int64_t>{2, 1, 3, 4, 0, 5}));
  EXPECT_TRUE(telling_samples({}, 12).empty());
  std::vector<JudgedSample> free(3);
  for (size_t i = 0; i < 3; ++i) free[i].weighted_nll = double(i), free[i].weight = 1;
  EXPECT_EQ(telling_samples(free, 2), (std::vector<int64_t>{2, 0}));
}

TEST(Examples, OfAnEarlierProcessStayWhileTheirEvaluationDoes) {
  RunHistory history;
  history.add(step_line("a<b", 5, 1));
  history.add(evaluation_line("a<b", 5));
  ReportExample example{.id = "q1", .question = "which?"};
  const std::string section = examples_html("a<b", 5, {example});
  const std::string page = page_of(two_stages(), history, section);
  EXPECT_EQ(earlier_examples(page, history), section);
  RunHistory cut;
  cut.add(step_line("a<b", 4, 1));
  EXPECT_EQ(earlier_examples(page, cut), "");
  EXPECT_EQ(earlier_examples("no page", history), "");
}

/// A report of the tiny run, evaluated by made-up judgements.
class ReportFile : public testing::Test {
 protected:
  ReportFile() {
    config_ = tiny_.config();
    fs::create_directories(config_.out);
    for (int step = 1; step <= 3; ++step) history_.add(step_line("align", step, 5));
  }
  std::string page() const { return read_file(config_.out + "/report.html"); }

  const TinyRun tiny_{"report"};
  RunConfig config_;
  RunHistory history_;
};

TEST_F(ReportFile, HoldsSmallPicturesOfTheExamples) {
  const SampleEncoder encoder = make_encoder(config_);
  const auto datasets = open_datasets(config_, encoder, make_single_groups());
  const Dataset& dataset = *datasets.at("heldout");
  EvalResult result;
  for (int64_t i = 0; i < dataset.size(); ++i) result.samples.push_back(judged({0.1, 0.2, 0.3, 0.4}, 3));
  Report report({.config = config_}, true);
  report.show_examples("align", 3, result, dataset, encoder);
  report.write(history_);
  const std::string text = page(), begin = "src=\"data:image/jpeg;base64,";
  EXPECT_EQ(count(text, begin), 12u);
  EXPECT_NE(text.find(escaped(dataset.read(0).question)), std::string::npos);
  EXPECT_TRUE(fs::exists(config_.out + "/loss.svg"));

  // A later process knows no samples, but the page does.
  history_.add(evaluation_line("align", 3));
  Report later({.config = config_}, true);
  later.write(history_);
  EXPECT_EQ(count(page(), begin), 12u);
  history_.add(step_line("all", 1, 5));
  later.write(history_);
  EXPECT_EQ(count(page(), begin), 12u);
}

TEST_F(ReportFile, IsWrittenByTheFirstRankOnly) {
  Report report({.config = config_}, false);
  report.write(history_);
  EXPECT_TRUE(fs::is_empty(config_.out));
}

TEST_F(ReportFile, AFullDiskGivesOneWarningAndLeavesTheEarlierPage) {
  Report report({.config = config_}, true);
  report.write(history_);
  const std::string before = page();
  const rlimit small{100, RLIM_INFINITY};
  rlimit was{};
  getrlimit(RLIMIT_FSIZE, &was);
  signal(SIGXFSZ, SIG_IGN);  // a write beyond the limit fails, as on a full disk
  setrlimit(RLIMIT_FSIZE, &small);
  testing::internal::CaptureStderr();
  report.set_status("finished");
  report.write(history_);
  report.write(history_);
  const std::string said = testing::internal::GetCapturedStderr();
  setrlimit(RLIMIT_FSIZE, &was);
  EXPECT_EQ(count(said, "report: got an error"), 1u) << said;
  EXPECT_EQ(page(), before);
  report.write(history_);
  EXPECT_NE(page().find(">finished<"), std::string::npos) << "there is room again";
}

TEST(JpegPicture, ComesBackAsItWas) {
  Tensor rgb = at::empty({3, 40, 30}, at::kByte);
  for (int64_t y = 0; y < 40; ++y)
    for (int64_t x = 0; x < 30; ++x)
      for (int64_t c = 0; c < 3; ++c) rgb[c][y][x] = static_cast<int>(c == 0 ? 6 * y : c == 1 ? 8 * x : 128);
  const Tensor back = decode_image(encode_jpeg(rgb, 95), {});
  EXPECT_EQ(back.sizes(), rgb.sizes());
  EXPECT_LT((back.to(at::kFloat) - rgb.to(at::kFloat)).abs().mean().item<float>(), 3);
  EXPECT_THROW(encode_jpeg(rgb[0], 95), Error);
}

}  // namespace
}  // namespace hanok
