#include "trainer/metrics.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "trainer/event_file.h"
#include "trainer/plot.h"
#include "trainer/progress.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;

class MetricsFile : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "/metrics_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  void record(
      const std::string& resume_stage, int64_t resume_step, const std::string& stage, int64_t from, int64_t to) {
    Metrics metrics(folder_, {resume_stage, resume_step, resume_step}, true, 1000);
    for (int64_t step = from; step <= to; ++step)
      metrics.record({.stage = stage, .step = step, .num_steps = 100, .loss = 5.0 - 0.01 * static_cast<double>(step)});
  }
  std::vector<nlohmann::json> lines() const {
    std::vector<nlohmann::json> out;
    std::ifstream file(folder_ + "/metrics.jsonl");
    for (std::string line; std::getline(file, line);) out.push_back(nlohmann::json::parse(line));
    return out;
  }
  std::string places() const {
    std::string out;
    for (const auto& line : lines())
      out += line["stage"].get<std::string>() + std::to_string(line["step"].get<int64_t>()) + " ";
    return out;
  }
  std::string folder_;
};

TEST_F(MetricsFile, AResumedRunCutsWhatItsCheckpointDoesNotKnow) {
  record("a", 0, "a", 1, 4);
  record("a", 2, "a", 3, 3);
  EXPECT_EQ(places(), "a1 a2 a3 ");
}

TEST_F(MetricsFile, EarlierStagesStayAndLaterOnesGo) {
  record("a", 0, "a", 1, 2);
  record("b", 0, "b", 1, 2);
  EXPECT_EQ(places(), "a1 a2 b1 b2 ");
  record("b", 1, "b", 2, 3);
  EXPECT_EQ(places(), "a1 a2 b1 b2 b3 ");
  record("a", 1, "a", 2, 2);
  EXPECT_EQ(places(), "a1 a2 ");
  record("a", 0, "a", 1, 1);  // from the beginning
  EXPECT_EQ(places(), "a1 ");
}

TEST_F(MetricsFile, ATornLastLineIsCut) {
  record("a", 0, "a", 1, 2);
  std::ofstream(folder_ + "/metrics.jsonl", std::ios::app) << R"({"kind":"step","stage":"a","st)";
  record("a", 2, "a", 3, 3);
  EXPECT_EQ(places(), "a1 a2 a3 ");
}

TEST_F(MetricsFile, ValuesThatAreNotFiniteAreNull) {
  Metrics metrics(folder_, {"a"}, true, 1000);
  metrics.record({.stage = "a", .step = 1, .num_steps = 1, .loss = NAN, .grad_norm = INFINITY, .applied = false});
  EXPECT_TRUE(lines()[0]["loss"].is_null());
  EXPECT_TRUE(lines()[0]["grad_norm"].is_null());
  EXPECT_EQ(lines()[0]["applied"], false);
}

TEST_F(MetricsFile, EvaluationsAreLinesOfTheirOwn) {
  Metrics metrics(folder_, {"a"}, true, 1000);
  metrics.record_evaluation("a", 7, R"({"loss": 2.5, "accuracy": 0.75})");
  EXPECT_EQ(lines()[0]["kind"], "evaluation");
  EXPECT_EQ(lines()[0]["step"], 7);
  EXPECT_EQ(lines()[0]["accuracy"], 0.75);
}

TEST_F(MetricsFile, OtherRanksWriteNothing) {
  Metrics metrics(folder_, {"a"}, false, 1);
  metrics.record({.stage = "a", .step = 1, .num_steps = 1});
  metrics.record_evaluation("a", 1, "{}");
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(MetricsFile, AnEvaluationThatTheResumedStateDoesNotKnowIsCut) {
  {
    Metrics metrics(folder_, {"a"}, true, 1000);
    metrics.record({.stage = "a", .step = 1, .num_steps = 9});
    metrics.record_evaluation("a", 1, R"({"loss": 2.5})");
  }
  { const Metrics knows(folder_, {"a", 1, 1}, true, 1000); }
  EXPECT_EQ(places(), "a1 a1 ");
  { const Metrics does_not(folder_, {"a", 1, -1}, true, 1000); }
  EXPECT_EQ(places(), "a1 ");
}

TEST_F(MetricsFile, ALineThatIsNoneDoesNotCostTheOnesBehindIt) {
  record("a", 0, "a", 1, 2);
  std::ofstream(folder_ + "/metrics.jsonl", std::ios::app) << "what is this\n";
  std::ofstream(folder_ + "/metrics.jsonl", std::ios::app) << R"({"kind":"step","stage":"a","step":3})"
                                                           << "\n";
  Metrics metrics(folder_, {"a", 3, 3}, true, 1000);
  EXPECT_EQ(metrics.history().steps.size(), 3u);
}

TEST_F(MetricsFile, WhatAFullDiskRefusesIsWrittenWhenThereIsRoomAgain) {
  Metrics metrics(folder_, {"a"}, true, 1000);
  metrics.record({.stage = "a", .step = 1, .num_steps = 9});
  rlimit was{};
  getrlimit(RLIMIT_FSIZE, &was);
  const rlimit full{fs::file_size(folder_ + "/metrics.jsonl") + 10, was.rlim_max};  // room for a part of a line
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &full);
  testing::internal::CaptureStderr();
  metrics.record({.stage = "a", .step = 2, .num_steps = 9});
  metrics.record({.stage = "a", .step = 3, .num_steps = 9});
  const std::string said = testing::internal::GetCapturedStderr();
  setrlimit(RLIMIT_FSIZE, &was);
  EXPECT_EQ(places(), "a1 ") << "no part of a line";
  EXPECT_NE(said.find("metrics.jsonl"), std::string::npos);
  EXPECT_EQ(said.find("metrics.jsonl"), said.rfind("metrics.jsonl")) << "said once";
  metrics.record({.stage = "a", .step = 4, .num_steps = 9});
  EXPECT_EQ(places(), "a1 a2 a3 a4 ");
}

TEST_F(MetricsFile, EveryStepIsWithTheSystemBeforeTheNextBegins) {
  Metrics metrics(folder_, {"a"}, true, 1000);
  metrics.record({.stage = "a", .step = 1, .num_steps = 9});
  EXPECT_EQ(places(), "a1 ");
}

TEST(Crc32c, AgreesWithItsStandard) {
  EXPECT_EQ(crc32c("123456789"),
            0xe3069283u);  // RFC 3720, appendix B.4 has the polynomial; the check value is CRC-32C's
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
}

TEST(Plot, IsOneCompletePictureWithStagesEndToEnd) {
  const std::string svg = chart_file({.title = "Loss",
                                      .curve = {{1, 5}, {60, 4}, {160, 3}},
                                      .marks = {{.x = 160, .y = 3.5, .low = 3, .high = 4, .note = "held <out>"}},
                                      .stages = {{"align", 0, 60}, {"all", 60, 160}}});
  EXPECT_TRUE(svg.starts_with("<svg"));
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  EXPECT_NE(svg.find(">align<"), std::string::npos);
  EXPECT_NE(svg.find(">all<"), std::string::npos);
  EXPECT_NE(svg.find("held &lt;out&gt;"), std::string::npos);
  EXPECT_NE(svg.find("whisker"), std::string::npos);
}

TEST(Plot, ASpikeSpoilsNeitherTheRangeNorTheMean) {
  Chart chart{.title = "spike"};
  for (int i = 0; i < 400; ++i) chart.curve.push_back({double(i), i == 200 ? 1e30 : 2 + 0.01 * ((i + 3) % 7)});
  const std::string svg = chart_svg(chart);
  EXPECT_EQ(svg.find("e+"), std::string::npos);
  EXPECT_NE(svg.find(">2.00<"), std::string::npos) << "ticks around 2";
  const size_t path = svg.rfind("<path class=\"mean\" d=\""), end = svg.find("\"/>", path);
  const double last_y = std::stod(svg.substr(svg.rfind(' ', end) + 1));
  EXPECT_NEAR(last_y, 58 + (460 - 46 - 58) / 2.0, 100) << "the mean behind the spike is not in the middle";
}

TEST(Plot, TicksAreRoundAndCoverTheRange) {
  EXPECT_EQ(round_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(round_ticks(3, 29, 5), (std::vector<double>{10, 20}));
  EXPECT_EQ(round_ticks(-1, 1, 4), (std::vector<double>{-1, -0.5, 0, 0.5, 1}));
  EXPECT_EQ(round_ticks(0.98, 1.0, 2).size(), 3u);
}

TEST(Plot, NamesAreEscapedAndValuesThatAreNotFiniteLeftOut) {
  const std::string svg = chart_file({.title = "a <b> & c", .curve = {{1, 2}, {2, NAN}, {3, INFINITY}, {4, 1}}});
  EXPECT_NE(svg.find("a &lt;b&gt; &amp; c"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
}

TEST(Plot, LongRunsAreThinned) {
  Chart chart{.title = "long"};
  for (int i = 0; i < 200'000; ++i) chart.curve.push_back({static_cast<double>(i), std::sin(i * 1e-4)});
  EXPECT_LT(chart_svg(chart).size(), 100'000u);
}

TEST(Plot, EmptyAndFlatCurvesAreDrawn) {
  EXPECT_TRUE(chart_svg({.title = "none"}).ends_with("</svg>\n"));
  EXPECT_EQ(chart_svg({.title = "flat", .curve = {{1, 0}, {2, 0}}}).find("nan"), std::string::npos);
  EXPECT_NE(chart_svg({.title = "one step", .curve = {{1, 3}}}).find("mean-dot"), std::string::npos);
}

TEST(Numbers, AreShortForPeople) {
  EXPECT_EQ(short_number(950), "950");
  EXPECT_EQ(short_number(12'345), "12.3k");
  EXPECT_EQ(short_number(999'900), "1.00M");
  EXPECT_EQ(short_number(0.5), "0.50");
  EXPECT_EQ(short_number(4.56e12, "FLOP/s"), "4.56 TFLOP/s");
  EXPECT_EQ(short_number(12, "FLOP/s"), "12 FLOP/s");
  EXPECT_EQ(duration_text(7), "0:07");
  EXPECT_EQ(duration_text(3661), "1:01:01");
  EXPECT_EQ(duration_text(90'061), "1d 01:01");
}

TEST(ReadableLine, SaysWhatIsAskedFor) {
  const StepMetrics step{.stage = "sft",
                         .step = 12,
                         .num_steps = 100,
                         .loss = 2.34567,
                         .grad_norm = 0.7123,
                         .lr = 1e-4,
                         .step_s = 2,
                         .data_wait_s = 0.1,
                         .tokens_per_s = 12'345,
                         .model_flops_per_s = 4.56e12,
                         .memory_gib = 1.2,
                         .memory_peak_gib = 1.5};
  const std::string whole = readable_line(step, 192, 0);
  EXPECT_EQ(whole,
            "sft 12/100  loss 2.3457  norm 0.712  lr 1.00e-04  12.3k tok/s  4.56 TFLOP/s  wait 5%  1.20/1.50 GiB  "
            "eta 3:12");
  EXPECT_EQ(readable_line(step, -1, 40), "sft 12/100  loss 2.3457  norm 0.712");
  StepMetrics bad = step;
  bad.applied = false;
  bad.label_tokens = 8;
  EXPECT_NE(readable_line(bad, 1, 20).find("SKIPPED: not finite"), std::string::npos);
  bad.label_tokens = 0;
  EXPECT_NE(readable_line(bad, 1, 20).find("SKIPPED: no label"), std::string::npos);
}

}  // namespace
}  // namespace hanok
