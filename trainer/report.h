// report.html of a run folder: one file for people, without scripts and without the network. And loss.svg.
#pragma once

#include <string>

#include "configs/schema/config.h"
#include "dataio/dataset.h"
#include "dataio/pack.h"
#include "trainer/evaluate.h"
#include "trainer/history.h"

namespace hanok {

/// What does not change while a process runs.
struct ReportFacts {
  RunConfig config;  // resolved
  int num_ranks = 1;
  std::string device;    // "cuda:0"
  std::string versions;  // lines "name value" of the program and its libraries
};

/// Kept by world rank 0; on other ranks nothing happens. None of its functions throws: a page is not worth a run. The
/// first failure is a WARNING, later ones are silent.
class Report {
 public:
  Report(ReportFacts facts, bool writes);
  ~Report();
  /// Replaces the examples by telling ones of this evaluation.
  void show_examples(const std::string& stage,
                     int64_t step,
                     const EvalResult& result,
                     const Dataset& dataset,
                     const SampleEncoder& encoder);
  /// "running" at first; "finished", "stopped on request", ...
  void set_status(const std::string& status);
  /// OUT/report.html and OUT/loss.svg, each whole or not at all. Examples of an earlier process are kept as long as
  /// their evaluation belongs to the history.
  void write(const RunHistory& history);
  /// The same, unless it was done within the last half minute.
  void refresh(const RunHistory& history);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hanok
