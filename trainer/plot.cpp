#include "trainer/plot.h"

#include <algorithm>

#include "base/error.h"
#include "trainer/progress.h"

namespace hanok {
namespace {

constexpr double kLeft = 70, kRight = 20, kTop = 58, kBottom = 46;

struct Range {
  double low = 0, high = 1;
  double share(double value) const { return (value - low) / (high - low); }
};

/// Data coordinates -> pixels.
struct Frame {
  Range x, y;
  double width, height;
  double right() const { return width - kRight; }
  double bottom() const { return height - kBottom; }
  double px(double value) const { return kLeft + x.share(value) * (right() - kLeft); }
  double py(double value) const { return kTop + (1 - std::clamp(y.share(value), 0.0, 1.0)) * (bottom() - kTop); }
};

std::string number(double value) {
  return printed("%.1f", value);
}

std::vector<PlotPoint> finite(const std::vector<PlotPoint>& points) {
  std::vector<PlotPoint> out;
  for (const PlotPoint& p : points)
    if (std::isfinite(p.x) && std::isfinite(p.y)) out.push_back(p);
  return out;
}

/// The lowest and highest point of each bucket, in order.
std::vector<PlotPoint> thinned(const std::vector<PlotPoint>& points, size_t buckets) {
  if (points.size() <= 2 * buckets) return points;
  std::vector<PlotPoint> out;
  for (size_t b = 0; b < buckets; ++b) {
    const auto begin = points.begin() + static_cast<long>(b * points.size() / buckets);
    const auto end = points.begin() + static_cast<long>((b + 1) * points.size() / buckets);
    auto [low, high] = std::minmax_element(begin, end, [](const auto& a, const auto& c) { return a.y < c.y; });
    if (low > high) std::swap(low, high);
    out.push_back(*low);
    if (low != high) out.push_back(*high);
  }
  return out;
}

/// Mean over the points around each one, stage by stage: where a stage changes the loss jumps, and the mean with it.
/// A spike counts as no more than what is shown of it; one of 1e30 would leave nothing of the other values in a sum.
std::vector<PlotPoint> running_mean(const std::vector<PlotPoint>& points,
                                    const std::vector<PlotStage>& stages,
                                    const Range& shown) {
  const auto reach = static_cast<int64_t>(std::max(points.size() / 80, std::min<size_t>(points.size() / 10, 2)));
  std::vector<double> sums = {0};
  for (const PlotPoint& p : points) sums.push_back(sums.back() + std::clamp(p.y, shown.low, shown.high));
  std::vector<PlotPoint> out;
  int64_t begin = 0;
  const auto add_until = [&](int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t around = std::min({reach, i - begin, end - 1 - i});
      out.push_back({points[i].x, (sums[i + around + 1] - sums[i - around]) / static_cast<double>(2 * around + 1)});
    }
    begin = end;
  };
  for (const PlotStage& stage : stages)
    add_until(std::partition_point(
                  points.begin() + begin, points.end(), [&](const PlotPoint& p) { return p.x <= stage.end; }) -
              points.begin());
  add_until(static_cast<int64_t>(points.size()));
  return out;
}

/// All of the marks, and of the curve all but the highest two per cent: spikes are cut.
Range y_range(const Chart& chart, const std::vector<PlotPoint>& curve) {
  std::vector<double> values;
  for (const PlotPoint& p : curve) values.push_back(p.y);
  std::sort(values.begin(), values.end());
  values.resize(values.size() - values.size() / 50);
  for (const PlotMark& mark : chart.marks)
    for (const double y : {mark.y, mark.low, mark.high})
      if (std::isfinite(y)) values.push_back(y);
  if (std::isfinite(chart.level)) values.push_back(chart.level);
  if (values.empty()) return {};
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const double air = std::max((*high - *low) * 0.06, std::abs(*high) * 1e-3 + 1e-9);
  Range range{*low >= 0 ? std::max(0.0, *low - air) : *low - air, *high + air};
  if (std::isfinite(chart.floor)) range.low = std::max(range.low, chart.floor);
  if (std::isfinite(chart.ceiling)) range.high = std::min(range.high, chart.ceiling);
  if (range.high <= range.low) range.low = range.high - air;
  return range;
}

Range x_range(const Chart& chart, const std::vector<PlotPoint>& curve) {
  Range range{curve.empty() ? 0 : curve.front().x, curve.empty() ? 1 : curve.back().x};
  for (const PlotStage& stage : chart.stages) {
    range.low = std::min(range.low, stage.begin);
    range.high = std::max(range.high, stage.end);
  }
  if (range.high <= range.low) range.high = range.low + 1;
  return range;
}

std::string text_at(double x, double y, const std::string& attributes, const std::string& text) {
  return "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" " + attributes + ">" + escaped(text) + "</text>\n";
}

std::string line_at(double x1, double y1, double x2, double y2, const std::string& name) {
  return "<line class=\"" + name + "\" x1=\"" + number(x1) + "\" y1=\"" + number(y1) + "\" x2=\"" + number(x2) +
         "\" y2=\"" + number(y2) + "\"/>\n";
}

std::string dot_at(double x, double y, const std::string& name, const std::string& note) {
  return "<circle class=\"" + name + "\" cx=\"" + number(x) + "\" cy=\"" + number(y) + "\" r=\"3.5\"" +
         (note.empty() ? "/>\n" : "><title>" + escaped(note) + "</title></circle>\n");
}

std::string path_of(const Frame& frame, const std::vector<PlotPoint>& points, const std::string& name) {
  if (points.empty()) return "";
  if (points.size() == 1) return dot_at(frame.px(points[0].x), frame.py(points[0].y), name + "-dot", "");
  std::string d;
  for (const PlotPoint& p : points) d += (d.empty() ? "M" : "L") + number(frame.px(p.x)) + " " + number(frame.py(p.y));
  return "<path class=\"" + name + "\" d=\"" + d + "\"/>\n";
}

std::string stage_bands(const Frame& frame, const std::vector<PlotStage>& stages) {
  std::string out;
  for (size_t i = 0; i < stages.size(); ++i) {
    const double left = frame.px(stages[i].begin), right = frame.px(stages[i].end);
    out += "<rect class=\"band" + std::to_string(i % 2) + "\" x=\"" + number(left) + "\" y=\"" + number(kTop) +
           "\" width=\"" + number(right - left) + "\" height=\"" + number(frame.bottom() - kTop) + "\"><title>stage " +
           escaped(stages[i].name) + "</title></rect>\n";
    const auto fits = static_cast<size_t>(std::max(0.0, (right - left - 8) / 7));
    if (stages.size() > 1 && fits >= 3)
      out += text_at(left + 2, kTop - 5, "class=\"faint\"", stages[i].name.substr(0, fits));
  }
  return out;
}

/// Digits by the distance of the ticks; thousands and beyond with a letter, small ones with an exponent.
std::string tick_text(double value, double step) {
  if (std::abs(value) >= 1000) return short_number(value);
  if (step < 1e-4) return printed("%.3g", value);
  const int decimals = std::clamp(static_cast<int>(-std::floor(std::log10(step) + 1e-9)), 0, 4);
  return printed(("%." + std::to_string(decimals) + "f").c_str(), value);
}

std::string axes(const Frame& frame, const std::string& unit) {
  std::string out;
  const std::vector<double> y_ticks = round_ticks(frame.y.low, frame.y.high, static_cast<int>(frame.height / 55));
  const double step = y_ticks.size() > 1 ? y_ticks[1] - y_ticks[0] : 1;
  for (const double y : y_ticks) {
    out += line_at(kLeft, frame.py(y), frame.right(), frame.py(y), "grid");
    out += text_at(kLeft - 7, frame.py(y) + 4, "text-anchor=\"end\"", tick_text(y, step));
  }
  for (const double x : round_ticks(frame.x.low, frame.x.high, static_cast<int>(frame.width / 100))) {
    out += line_at(frame.px(x), frame.bottom(), frame.px(x), frame.bottom() + 5, "axis");
    out += text_at(
        frame.px(x), frame.bottom() + 18, "text-anchor=\"middle\"", x >= 1e5 ? short_number(x) : printed("%.10g", x));
  }
  out += line_at(kLeft, frame.bottom(), frame.right(), frame.bottom(), "axis");
  out += text_at(
      (kLeft + frame.right()) / 2, frame.height - 9, "class=\"faint\" text-anchor=\"middle\"", "optimizer step");
  const double middle = (kTop + frame.bottom()) / 2;
  const std::string turn = "class=\"faint\" text-anchor=\"middle\" transform=\"rotate(-90 14 " + number(middle) + ")\"";
  return out + text_at(14, middle, turn, unit);
}

std::string legend(const Frame& frame, const Chart& chart, bool has_marks) {
  struct Entry {
    std::string name, mark;
  };
  std::vector<Entry> entries;
  const double y = 26;
  const auto stroke = [&](const std::string& name) {
    return "<path class=\"" + name + "\" d=\"M0 " + number(y) + "h18\"/>\n";
  };
  if (!chart.curve.empty() && chart.smoothed) {
    entries.push_back({chart.curve_name, stroke("curve")});
    entries.push_back({"running mean", stroke("mean")});
  }
  if (has_marks && !chart.curve.empty()) entries.push_back({chart.marks_name, dot_at(9, y, "mark", "")});
  if (std::isfinite(chart.level)) entries.push_back({chart.level_name, stroke("level")});
  double width = 0;
  const auto width_of = [](const Entry& entry) { return 24 + 6.4 * static_cast<double>(entry.name.size()) + 12; };
  for (const Entry& entry : entries) width += width_of(entry);
  double x = frame.right() - width + 12;
  std::string out;
  for (const Entry& entry : entries) {
    out +=
        "<g transform=\"translate(" + number(x) + " 0)\">" + entry.mark + text_at(23, y + 4, "", entry.name) + "</g>\n";
    x += width_of(entry);
  }
  return out;
}

std::string marks_of(const Frame& frame, const Chart& chart) {
  std::string out, d;
  for (const PlotMark& mark : chart.marks) {
    if (!std::isfinite(mark.y)) continue;
    const double x = frame.px(mark.x), y = frame.py(mark.y);
    if (chart.curve.empty()) d += (d.empty() ? "M" : "L") + number(x) + " " + number(y);
    if (std::isfinite(mark.low) && std::isfinite(mark.high))
      out += line_at(x, frame.py(mark.low), x, frame.py(mark.high), "whisker");
    out += dot_at(x, y, "mark", mark.note);
  }
  return d.empty() ? out : "<path class=\"marks\" d=\"" + d + "\"/>\n" + out;
}

}  // namespace

std::vector<double> round_ticks(double low, double high, int wanted) {
  const double rough = (high - low) / std::max(wanted, 1), power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * power >= rough * 0.999) {
      step = factor * power;
      break;
    }
  std::vector<double> ticks;
  for (auto i = static_cast<int64_t>(std::ceil(low / step - 1e-9)); static_cast<double>(i) * step <= high + step * 1e-9;
       ++i)
    ticks.push_back(static_cast<double>(i) * step);
  return ticks;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (c == '\'')
      out += "&#39;";
    else if (static_cast<unsigned char>(c) < 32 && c != '\n' && c != '\t')
      out += ' ';
    else
      out += c;
  }
  return out;
}

std::string chart_svg(const Chart& chart) {
  const std::vector<PlotPoint> curve = finite(chart.curve);
  const Frame frame{x_range(chart, curve), y_range(chart, curve), chart.width, chart.height};
  const auto buckets = static_cast<size_t>(frame.right() - kLeft);
  const bool has_marks =
      std::any_of(chart.marks.begin(), chart.marks.end(), [](const PlotMark& m) { return std::isfinite(m.y); });
  std::string svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" role=\"img\" aria-label=\"" +
                    escaped(chart.title) + "\" viewBox=\"0 0 " + printed("%.0f", chart.width) + " " +
                    printed("%.0f", chart.height) + "\">\n";
  svg += stage_bands(frame, chart.stages) + axes(frame, chart.unit);
  svg += text_at(kLeft - 56, 30, "class=\"title\"", chart.title) + legend(frame, chart, has_marks);
  svg += path_of(frame, thinned(curve, buckets), chart.smoothed ? "curve" : "mean");
  if (chart.smoothed) svg += path_of(frame, thinned(running_mean(curve, chart.stages, frame.y), buckets), "mean");
  if (std::isfinite(chart.level))
    svg += line_at(kLeft, frame.py(chart.level), frame.right(), frame.py(chart.level), "level");
  return svg + marks_of(frame, chart) + "</svg>\n";
}

std::string chart_style(bool is_dark) {
  struct Colours {
    const char *ink, *faint, *grid, *band0, *band1, *curve, *mean, *mark, *level;
  };
  const Colours c =
      is_dark
          ? Colours{"#c9d1e0", "#8b96ab", "#2c3443", "#1b212c", "#171c25", "#4a6394", "#7fa6f8", "#ff8b94", "#8b96ab"}
          : Colours{"#3a4252", "#6a7488", "#e1e5ec", "#f5f7fb", "#ffffff", "#a9bde4", "#2255bb", "#d1495b", "#6a7488"};
  const auto rule = [](const char* selector, const char* property, const char* colour) {
    return concat(".chart ", selector, "{", property, ":", colour, "}\n");
  };
  return concat(".chart text{font:12px system-ui,sans-serif;fill:",
                c.ink,
                "}\n.chart .title{font-size:15px;font-weight:600}\n") +
         rule(".faint", "fill", c.faint) + rule(".grid", "stroke", c.grid) + rule(".axis", "stroke", c.faint) +
         rule(".band0", "fill", c.band0) + rule(".band1", "fill", c.band1) +
         ".chart path{fill:none;stroke-linejoin:round}\n" + rule(".curve", "stroke", c.curve) +
         rule(".mean", "stroke", c.mean) + ".chart .mean{stroke-width:2}\n" + rule(".curve-dot", "fill", c.mean) +
         rule(".mean-dot", "fill", c.mean) + rule(".mark", "fill", c.mark) + rule(".marks", "stroke", c.mark) +
         ".chart .marks{stroke-width:1.5}\n" + rule(".whisker", "stroke", c.mark) +
         ".chart .whisker{opacity:.45;stroke-width:5;stroke-linecap:round}\n" + rule(".level", "stroke", c.level) +
         ".chart .level{stroke-dasharray:5 4}\n";
}

std::string chart_file(const Chart& chart) {
  const std::string svg = chart_svg(chart);
  const size_t open = svg.find(">\n");
  const std::string size = concat(" width=\"", chart.width, "\" height=\"", chart.height, "\">\n");
  return svg.substr(0, open) + size + "<style>\n" + chart_style(false) +
         "</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n" + svg.substr(open + 2);
}

}  // namespace hanok
