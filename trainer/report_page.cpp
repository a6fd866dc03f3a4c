#include "trainer/report_page.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "configs/schema/read.h"
#include "trainer/plot.h"
#include "trainer/progress.h"
#include "trainer/report_style.h"

namespace hanok {
namespace {

constexpr const char* kExamplesBegin = "<section id=\"examples\" data-of=\"";
constexpr const char* kExamplesEnd = "</section><!-- end of examples -->\n";

std::string percent(double share) {
  return printed("%.1f %%", 100 * share);
}

std::string tag(const std::string& name, const std::string& html) {
  return "<" + name + ">" + html + "</" + name.substr(0, name.find(' ')) + ">";
}

std::string letter(size_t choice) {
  return choice < 26 ? std::string(1, static_cast<char>('a' + choice)) : concat(choice + 1);
}

std::string quoted_for_shell(const std::string& word) {
  const bool is_plain = std::all_of(word.begin(), word.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '/' || c == '.' || c == '_' || c == '-' || c == '=';
  });
  if (is_plain && !word.empty()) return word;
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string interval(const RunHistory::Evaluation& e) {
  return printed("%.1f to ", 100 * e.accuracy_low) + printed("%.1f", 100 * e.accuracy_high);
}

/// Sums over the whole run.
struct Totals {
  double steps = 0, tokens = 0, seconds = 0, wait_s = 0, flops = 0, memory_gib = 0;
  int64_t skipped = 0;
};

Totals totals_of(const RunHistory& history) {
  Totals t;
  for (const auto& stage : history.stages) {
    t.steps += stage.end - stage.begin;
    t.tokens += stage.tokens;
    t.seconds += stage.seconds;
    t.wait_s += stage.data_wait_s;
    t.flops += stage.flops;
    t.memory_gib = std::max(t.memory_gib, stage.peak_memory_gib);
    t.skipped += stage.num_skipped;
  }
  return t;
}

std::string tile(const std::string& value, const std::string& what, const std::string& more) {
  return "<div class=\"tile\"><span>" + escaped(what) + "</span>" + tag("b", escaped(value)) + "<span>" +
         escaped(more) + "</span></div>\n";
}

std::string tiles(const RunHistory& history) {
  const Totals t = totals_of(history);
  std::string out = "<div class=\"tiles\">\n";
  if (!history.evaluations.empty()) {
    const auto& last = history.evaluations.back();
    if (std::isfinite(last.accuracy))
      out += tile(percent(last.accuracy),
                  "held-out accuracy",
                  std::isfinite(last.accuracy_low) ? interval(last) + " (95 %)" : "");
    if (std::isfinite(last.loss)) {
      double best = last.loss;
      for (const auto& e : history.evaluations)
        if (e.loss < best) best = e.loss;
      out += tile(printed("%.4f", last.loss),
                  "held-out loss",
                  best < last.loss ? printed("lowest %.4f", best) : "the lowest so far");
    }
  }
  if (!history.steps.empty()) {
    const double first = history.steps.front().loss, last = history.steps.back().loss;
    out += tile(std::isfinite(last) ? printed("%.4f", last) : "not finite",
                "training loss",
                std::isfinite(first) ? printed("first step %.4f", first) : "");
  }
  const std::string skipped = t.skipped > 0 ? concat(t.skipped, " skipped as not finite") : "optimizer steps";
  out += tile(short_number(t.steps), "steps", skipped);
  out += tile(short_number(t.tokens), "tokens", duration_text(t.seconds) + " in steps");
  if (t.seconds > 0)
    out += tile(
        short_number(t.tokens / t.seconds) + "/s", "tokens, all ranks", short_number(t.flops / t.seconds, "FLOP/s"));
  if (t.memory_gib > 0)
    out += tile(printed("%.2f GiB", t.memory_gib),
                "peak memory",
                t.seconds > 0 ? percent(t.wait_s / t.seconds) + " data wait" : "");
  return out + "</div>\n";
}

std::string charts(const RunHistory& history) {
  if (history.steps.empty()) return "<p class=\"soft\">No step has been taken yet.</p>\n";
  std::string out = "<div class=\"charts\">\n";
  const auto add = [&](Chart chart, const char* classes, double width, double height) {
    chart.width = width;
    chart.height = height;
    out += std::string("<div class=\"") + classes + "\">" + chart_svg(chart) + "</div>\n";
  };
  Chart accuracy = accuracy_chart(history);
  const bool has_accuracy = !accuracy.marks.empty();
  add(loss_chart(history), has_accuracy ? "panel" : "panel wide", has_accuracy ? 520 : 1060, has_accuracy ? 290 : 340);
  if (has_accuracy) add(std::move(accuracy), "panel", 520, 290);
  out += "</div>\n<div class=\"charts small\">\n";
  add(throughput_chart(history), "panel", 400, 230);
  add(grad_norm_chart(history), "panel", 400, 230);
  add(rate_chart(history), "panel", 400, 230);
  return out + "</div>\n";
}

std::string confusion_table(const RunHistory::Evaluation& e) {
  std::string out = "<table class=\"heat\"><tr><th></th>";
  for (size_t c = 0; c < e.confusion.size(); ++c) out += tag("th", letter(c));
  out += "</tr>\n";
  for (size_t a = 0; a < e.confusion.size(); ++a) {
    int64_t sum = 0;
    for (const int64_t count : e.confusion[a]) sum += count;
    out += "<tr><th>" + letter(a) + "</th>";
    for (size_t c = 0; c < e.confusion[a].size(); ++c) {
      const double share = sum > 0 ? static_cast<double>(e.confusion[a][c]) / static_cast<double>(sum) : 0;
      out += std::string("<td") + (a == c ? " class=\"right\"" : "") + printed(" style=\"--share:%.3f\">", share) +
             concat(e.confusion[a][c]) + "</td>";
    }
    out += "</tr>\n";
  }
  return out + "</table>\n";
}

std::string evaluations_table(const RunHistory& history) {
  constexpr size_t kNewest = 40;
  const auto& all = history.evaluations;
  std::string out = "<table><tr><th>after</th><th>loss</th><th>accuracy</th><th>95 %</th><th>right</th></tr>\n";
  const auto cell = [](double value, const std::string& text) {
    return tag("td", std::isfinite(value) ? text : "&ndash;");
  };
  for (size_t i = all.size(); i-- > 0 && all.size() - i <= kNewest;) {
    const auto& e = all[i];
    out += "<tr>" + tag("td", escaped(concat(e.stage, " ", e.step))) + cell(e.loss, printed("%.4f", e.loss)) +
           cell(e.accuracy, percent(e.accuracy)) + cell(e.accuracy_low, interval(e)) +
           cell(e.accuracy, concat(e.num_correct, " / ", e.num_answered)) + "</tr>\n";
  }
  out += "</table>\n";
  if (all.size() > kNewest) out += tag("p class=\"soft\"", concat("The newest ", kNewest, " of ", all.size(), "."));
  return out;
}

std::string held_out(const RunHistory& history) {
  if (history.evaluations.empty()) return "";
  const auto& last = history.evaluations.back();
  std::string out = "<h2>Held-out results</h2>\n<div class=\"pair\">\n<div class=\"panel\">" +
                    evaluations_table(history) + "</div>\n";
  if (!last.confusion.empty()) {
    out += "<div class=\"panel\"><p class=\"soft\">Rows: the right answer; columns: the model's choice. After " +
           escaped(concat(last.stage, " step ", last.step, ", ", last.num_answered, " questions")) +
           (std::isfinite(last.calibration_error) ? printed("; calibration error %.3f", last.calibration_error) : "") +
           ".</p>\n" + confusion_table(last) + "</div>\n";
  }
  return out + "</div>\n";
}

std::string stages_table(const RunConfig& config, const RunHistory& history) {
  std::string out =
      "<h2>Stages</h2>\n<div class=\"panel\"><table><tr><th>stage</th><th>steps</th><th>tokens</th><th>time</th>"
      "<th>last loss</th><th>rate</th><th>rows &times; tokens</th><th class=\"text\">trains</th><th "
      "class=\"text\">learns from</th></tr>\n";
  for (const StageConfig& stage : config.stages) {
    const auto found = std::find_if(
        history.stages.begin(), history.stages.end(), [&](const auto& done) { return done.name == stage.name; });
    out += "<tr>" + tag("td", escaped(stage.name));
    if (found == history.stages.end()) {
      out += "<td>not begun</td><td></td><td></td><td></td>";
    } else {
      out += tag("td", concat(found->end - found->begin, " of ", found->num_steps)) +
             tag("td", short_number(found->tokens)) + tag("td", duration_text(found->seconds)) +
             tag("td", std::isfinite(found->last_loss) ? printed("%.4f", found->last_loss) : "&ndash;");
    }
    std::string trains, mixture;
    for (const std::string& glob : stage.trainable) trains += (trains.empty() ? "" : ", ") + glob;
    for (const auto& [name, weight] : stage.mixture)
      mixture += (mixture.empty() ? "" : ", ") + name + (stage.mixture.size() > 1 ? concat(" ", weight) : "");
    out += tag("td", concat(stage.optimizer.lr)) + tag("td", concat(stage.rows_per_step, " &times; ", stage.seq_len)) +
           tag("td class=\"text\"", escaped(trains)) + tag("td class=\"text\"", escaped(mixture)) + "</tr>\n";
  }
  return out + "</table></div>\n";
}

std::string commands(const RunConfig& config, int num_ranks) {
  const std::string yaml = quoted_for_shell(config.out + "/config.yaml"), out = quoted_for_shell(config.out);
  const std::string run = concat("mpirun -np ", num_ranks, " trainer");
  const std::string last = config.stages.empty() ? "0" : config.stages.back().name;
  std::string set;
  if (config.eval.set.empty() && !config.data.sets.empty())
    set = " --set " + quoted_for_shell("eval.set=" + config.data.sets.begin()->first);
  const auto block = [](const std::string& what, const std::string& command) {
    return tag("p", what) + tag("pre", escaped(command)) + "\n";
  };
  return "<h2>How to go on</h2>\n<div class=\"panel\">\n" +
         block(
             "From the folder in which the run was started, after <code>. launch/env.sh</code>. Go on from the newest "
             "checkpoint, on any number of ranks:",
             run + " --config " + yaml) +
         block("Train the last stage longer:",
               run + " --config " + yaml + " --set " + quoted_for_shell("stages." + last + ".steps=N")) +
         block("Measure it, with one JSON line a sample and an answer file:",
               run + " evaluate --config " + yaml + set + " \\\n  --set " +
                   quoted_for_shell("eval.dump=" + config.out + "/samples.jsonl") + " --set " +
                   quoted_for_shell("eval.submission=" + config.out + "/answers.csv")) +
         block("Write a Hugging Face folder of the newest checkpoint; transformers opens it:",
               "trainer export --config " + yaml + " --output my_model") +
         block("See the curves in TensorBoard:", "tensorboard --logdir " + out) + "</div>\n";
}

std::string example_state(const ReportExample& e) {
  if (e.probabilities.empty() || e.answer < 0) return "";
  const auto best = std::max_element(e.probabilities.begin(), e.probabilities.end()) - e.probabilities.begin();
  return best == e.answer ? "good" : "bad";
}

std::string choice_list(const ReportExample& e) {
  const auto best = std::max_element(e.probabilities.begin(), e.probabilities.end()) - e.probabilities.begin();
  std::string out = "<ul class=\"choices\">\n";
  for (size_t c = 0; c < e.probabilities.size(); ++c) {
    const bool is_gold = e.answer == static_cast<int>(c), is_choice = best == static_cast<long>(c);
    const char* classes = is_gold ? "gold" : is_choice && e.answer >= 0 ? "wrong" : "";
    std::string note = is_choice ? (is_gold        ? "&#10003; chosen, right"
                                    : e.answer < 0 ? "chosen"
                                                   : "&#10007; chosen")
                                 : "";
    if (is_gold && !is_choice) note = "right answer";
    out += std::string("<li class=\"") + classes + "\"" + printed(" style=\"--share:%.3f\">", e.probabilities[c]) +
           tag("span", letter(c)) +
           tag("span", (c < e.choices.size() ? escaped(e.choices[c]) : "") + (note.empty() ? "" : tag("i", note))) +
           "<span class=\"p\">" + percent(e.probabilities[c]) + "</span></li>\n";
  }
  return out + "</ul>\n";
}

std::string card(const ReportExample& e) {
  const std::string state = example_state(e);
  std::string head = state == "good" ? "right" : state == "bad" ? "wrong" : "";
  if (head.empty() && std::isfinite(e.loss)) head = printed("loss %.3f", e.loss);
  std::string out =
      "<article class=\"card " + state + "\"><header>" + tag("span", escaped(e.id)) + tag("b", head) + "</header>\n";
  if (!e.pictures.empty()) {
    out += "<div class=\"pictures\">";
    for (const std::string& uri : e.pictures)
      out += "<img src=\"" + escaped(uri) + "\" alt=\"picture of the question\">";
    out += "</div>\n";
    const int64_t hidden = e.num_pictures - static_cast<int64_t>(e.pictures.size());
    if (hidden > 0) out += tag("p class=\"soft\"", concat("and ", hidden, " more"));
  }
  out += tag("div class=\"question\"", escaped(e.question)) + "\n";
  if (!e.probabilities.empty()) return out + choice_list(e) + "</article>\n";
  if (!e.reference.empty())
    out += tag("p class=\"soft\"", "expected") + tag("div class=\"question\"", escaped(e.reference));
  return out + "</article>\n";
}

std::string badge(const std::string& status) {
  const char* kind = status.starts_with("finished") ? " good" : status.starts_with("failed") ? " bad" : "";
  return std::string("<span class=\"badge") + kind + "\">" + escaped(status) + "</span>";
}

}  // namespace

std::string examples_html(const std::string& stage, int64_t step, const std::vector<ReportExample>& examples) {
  if (examples.empty()) return "";
  const bool has_choices =
      std::any_of(examples.begin(), examples.end(), [](const ReportExample& e) { return !e.probabilities.empty(); });
  const char* order = has_choices ? ": the mistakes the model was surest of first, then the right answers it was least "
                                    "sure of, then the surest."
                                  : ": those of the highest loss first, then those of the lowest.";
  std::string out = kExamplesBegin + escaped(concat(stage, "/", step)) + "\">\n<h2>Examples</h2>\n" +
                    tag("p class=\"soft\"", escaped(concat("Held-out samples after ", stage, " step ", step)) + order) +
                    "\n<div class=\"cards\">\n";
  for (const ReportExample& example : examples) out += card(example);
  return out + "</div>\n" + kExamplesEnd;
}

std::string earlier_examples(const std::string& page, const RunHistory& history) {
  const size_t begin = page.find(kExamplesBegin), end = page.find(kExamplesEnd);
  if (begin == std::string::npos || end == std::string::npos || end < begin) return "";
  const std::string section = page.substr(begin, end - begin) + kExamplesEnd;
  for (const auto& e : history.evaluations)
    if (section.starts_with(kExamplesBegin + escaped(concat(e.stage, "/", e.step)) + "\"")) return section;
  return "";
}

std::string report_html(const ReportPage& page) {
  const std::string name = escaped(page.config.name);
  const std::string where = concat(
      page.num_ranks, page.num_ranks == 1 ? " rank" : " ranks", " on ", page.device, "; folder ", page.config.out);
  std::string out =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n<title>" +
      name + "</title>\n<style>\n" + kReportColoursLight + kReportLayout + chart_style(false) +
      "@media (prefers-color-scheme:dark){\n" + kReportColoursDark + chart_style(true) +
      "}\n</style>\n</head>\n<body>\n<main>\n";
  out += "<h1>" + name + badge(page.status) + "</h1>\n<p class=\"soft\">" + escaped(where) + "; written " +
         escaped(page.written) + "</p>\n";
  out += tiles(page.history) + "<h2>Training</h2>\n" + charts(page.history) + held_out(page.history) + page.examples +
         stages_table(page.config, page.history) + commands(page.config, page.num_ranks);
  out += "<h2>Configuration</h2>\n<details><summary>Every key as it was resolved; hash " + config_hash(page.config) +
         "</summary>\n<pre>" + escaped(echo(page.config)) + "</pre></details>\n";
  if (!page.versions.empty()) out += "<h2>Versions</h2>\n<pre>" + escaped(page.versions) + "</pre>\n";
  return out + "</main>\n</body>\n</html>\n";
}

}  // namespace hanok
