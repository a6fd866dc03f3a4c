#include "trainer/report.h"

#include <ctime>
#include <exception>
#include <filesystem>

#include "base/clock.h"
#include "base/log.h"
#include "dataio/file_io.h"
#include "trainer/progress.h"
#include "trainer/report_page.h"

namespace hanok {
namespace {

constexpr double kRefreshS = 30;

std::string time_text() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char text[64];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S %Z", &local)};
}

}  // namespace

struct Report::State {
  ReportFacts facts;
  bool writes = false, warned = false, examples_known = false;
  double written_s = 0;
  std::string status = "running", examples;

  std::string file(const char* name) const { return facts.config.out + "/" + name; }

  /// Whatever goes wrong, also in a library: the run goes on.
  template <class Body>
  void attempt(Body&& body) {
    if (!writes) return;
    try {
      body();
    } catch (const std::exception& error) {
      if (!warned) HANOK_LOG(WARNING) << "report: got an error, the run goes on without a new page; " << error.what();
      warned = true;
    }
  }
};

Report::Report(ReportFacts facts, bool writes) : state_(new State{.facts = std::move(facts), .writes = writes}) {}

Report::~Report() = default;

void Report::set_status(const std::string& status) {
  state_->status = status;
}

void Report::show_examples(const std::string& stage,
                           int64_t step,
                           const EvalResult& result,
                           const Dataset& dataset,
                           const SampleEncoder& encoder) {
  State& s = *state_;
  s.attempt([&] {
    const ImageLimits limits{.max_pixels = s.facts.config.data.max_image_pixels};
    s.examples = examples_html(stage, step, report_examples(dataset, result.samples, encoder, limits));
    s.examples_known = true;
  });
}

void Report::refresh(const RunHistory& history) {
  if (now_s() - state_->written_s >= kRefreshS) write(history);
}

void Report::write(const RunHistory& history) {
  State& s = *state_;
  s.written_s = now_s();
  s.attempt([&] {
    if (!s.examples_known && std::filesystem::exists(s.file("report.html")))
      s.examples = earlier_examples(read_file(s.file("report.html")), history);
    s.examples_known = true;
    if (!history.steps.empty()) write_file_atomically(s.file("loss.svg"), chart_file(loss_chart(history)));
    write_file_atomically(s.file("report.html"),
                          report_html({.config = s.facts.config,
                                       .history = history,
                                       .status = s.status,
                                       .written = time_text(),
                                       .num_ranks = s.facts.num_ranks,
                                       .device = s.facts.device,
                                       .versions = s.facts.versions,
                                       .examples = s.examples}));
  });
}

}  // namespace hanok
