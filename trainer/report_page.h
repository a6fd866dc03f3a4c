// The text of report.html. Private to trainer/.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "trainer/history.h"
#include "trainer/report_examples.h"

namespace hanok {

struct ReportPage {
  const RunConfig& config;
  const RunHistory& history;
  std::string status, written;  // "running"; when the page was written, as text
  int num_ranks = 1;
  std::string device, versions;
  std::string examples;  // of examples_html; may be empty
};
/// Whole HTML 5 document. Pure. Everything that comes from users is escaped.
std::string report_html(const ReportPage& page);

/// Cards of an evaluation, as a stretch of the page that earlier_examples() finds again.
std::string examples_html(const std::string& stage, int64_t step, const std::vector<ReportExample>& examples);
/// The stretch of an earlier page, if its evaluation is one of `history`; else empty.
std::string earlier_examples(const std::string& page, const RunHistory& history);

}  // namespace hanok
