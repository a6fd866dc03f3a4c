#include "trainer/plot.h"

#include <algorithm>
#include <cmath>

#include "trainer/progress.h"

namespace hanok {
namespace {

constexpr double kWidth = 900, kHeight = 460, kLeft = 68, kRight = 24, kTop = 66, kBottom = 52;

struct Range {
  double low = 0, high = 1;
  double share(double value) const { return (value - low) / (high - low); }
};

/// Data coordinates -> pixels.
struct Frame {
  Range x, y;
  double px(double value) const { return kLeft + x.share(value) * (kWidth - kLeft - kRight); }
  double py(double value) const {
    return kTop + (1 - std::clamp(y.share(value), 0.0, 1.0)) * (kHeight - kTop - kBottom);
  }
};

std::string number(double value) {
  return printed("%.1f", value);
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
    else
      out += c;
  }
  return out;
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
std::vector<PlotPoint> smoothed(const std::vector<PlotPoint>& points, const std::vector<PlotStage>& stages) {
  const auto reach = static_cast<int64_t>(points.size() / 80);
  std::vector<double> sums = {0};
  for (const PlotPoint& p : points) sums.push_back(sums.back() + p.y);
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

/// All of the running mean and of the marks, and of the raw curve all but the highest two per cent: spikes are cut.
Range y_range(const std::vector<PlotPoint>& raw,
              const std::vector<PlotPoint>& mean,
              const std::vector<PlotPoint>& marks) {
  std::vector<double> values;
  for (const PlotPoint& p : raw) values.push_back(p.y);
  std::sort(values.begin(), values.end());
  values.resize(values.size() - values.size() / 50);
  for (const auto* points : {&mean, &marks})
    for (const PlotPoint& p : *points) values.push_back(p.y);
  if (values.empty()) return {};
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const double air = std::max((*high - *low) * 0.06, std::abs(*high) * 1e-3 + 1e-9);
  return {*low >= 0 ? std::max(0.0, *low - air) : *low - air, *high + air};
}

Range x_range(const LossPlot& plot, const std::vector<PlotPoint>& raw) {
  Range range{raw.empty() ? 0 : raw.front().x, raw.empty() ? 1 : raw.back().x};
  for (const PlotStage& stage : plot.stages) {
    range.low = std::min(range.low, stage.begin);
    range.high = std::max(range.high, stage.end);
  }
  if (range.high <= range.low) range.high = range.low + 1;
  return range;
}

std::string text_at(double x, double y, const std::string& attributes, const std::string& text) {
  return "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" " + attributes + ">" + escaped(text) + "</text>\n";
}

std::string line_at(double x1, double y1, double x2, double y2, const std::string& color) {
  return "<line x1=\"" + number(x1) + "\" y1=\"" + number(y1) + "\" x2=\"" + number(x2) + "\" y2=\"" + number(y2) +
         "\" stroke=\"" + color + "\"/>\n";
}

std::string path_of(const Frame& frame, const std::vector<PlotPoint>& points, const std::string& style) {
  if (points.empty()) return "";
  std::string d;
  for (const PlotPoint& p : points) d += (d.empty() ? "M" : "L") + number(frame.px(p.x)) + " " + number(frame.py(p.y));
  return "<path d=\"" + d + "\" fill=\"none\" stroke-linejoin=\"round\" " + style + "/>\n";
}

std::string stage_bands(const Frame& frame, const std::vector<PlotStage>& stages) {
  std::string out;
  for (size_t i = 0; i < stages.size(); ++i) {
    const double left = frame.px(stages[i].begin), right = frame.px(stages[i].end);
    out += "<rect x=\"" + number(left) + "\" y=\"" + number(kTop) + "\" width=\"" + number(right - left) +
           "\" height=\"" + number(kHeight - kTop - kBottom) + "\" fill=\"" + (i % 2 ? "#ffffff" : "#f4f6fa") +
           "\"/>\n";
    const auto fits = static_cast<size_t>(std::max(0.0, (right - left - 8) / 7));
    if (fits >= 3) out += text_at(left + 2, kTop - 5, "fill=\"#7a8499\"", stages[i].name.substr(0, fits));
  }
  return out;
}

std::string axes(const Frame& frame) {
  std::string out;
  const std::vector<double> y_ticks = round_ticks(frame.y.low, frame.y.high, 6);
  const double step = y_ticks.size() > 1 ? y_ticks[1] - y_ticks[0] : 1;
  const std::string format =
      "%." + std::to_string(std::clamp(static_cast<int>(-std::floor(std::log10(step) + 1e-9)), 0, 8)) + "f";
  for (const double y : y_ticks) {
    out += line_at(kLeft, frame.py(y), kWidth - kRight, frame.py(y), "#dfe3ea");
    out += text_at(kLeft - 8, frame.py(y) + 4, "text-anchor=\"end\"", printed(format.c_str(), y));
  }
  for (const double x : round_ticks(frame.x.low, frame.x.high, 8)) {
    out += line_at(frame.px(x), kHeight - kBottom, frame.px(x), kHeight - kBottom + 5, "#8a93a6");
    out += text_at(frame.px(x), kHeight - kBottom + 19, "text-anchor=\"middle\"", printed("%.10g", x));
  }
  out += line_at(kLeft, kHeight - kBottom, kWidth - kRight, kHeight - kBottom, "#8a93a6");
  out += text_at((kLeft + kWidth - kRight) / 2, kHeight - 12, "text-anchor=\"middle\"", "optimizer step");
  const std::string turn = "text-anchor=\"middle\" transform=\"rotate(-90 16 " + number(kHeight / 2) + ")\"";
  return out + text_at(16, kHeight / 2, turn, "loss");
}

std::string legend(bool has_marks) {
  double x = kWidth - kRight - (has_marks ? 262 : 176);
  const double y = 30;
  std::string out;
  const auto entry = [&](const std::string& mark, const std::string& name, double width) {
    out += mark + text_at(x + 24, y + 4, "", name);
    x += width;
  };
  const auto stroke = [&](const std::string& style) {
    return "<path d=\"M" + number(x) + " " + number(y) + "h18\" " + style + "/>\n";
  };
  entry(stroke("stroke=\"#9db4e0\""), "a step", 76);
  entry(stroke("stroke=\"#1f4fb4\" stroke-width=\"2\""), "running mean", 118);
  if (has_marks)
    entry(
        "<circle cx=\"" + number(x + 9) + "\" cy=\"" + number(y) + "\" r=\"3.5\" fill=\"#d1495b\"/>\n", "held out", 0);
  return out;
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

std::string loss_svg(const LossPlot& plot) {
  const std::vector<PlotPoint> raw = finite(plot.loss), marks = finite(plot.held_out);
  const std::vector<PlotPoint> mean = smoothed(raw, plot.stages);
  const Frame frame{x_range(plot, raw), y_range(raw, mean, marks)};
  const auto buckets = static_cast<size_t>(kWidth - kLeft - kRight);
  std::string svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + printed("%.0f", kWidth) + " " +
                    printed("%.0f", kHeight) + "\" width=\"" + printed("%.0f", kWidth) + "\" height=\"" +
                    printed("%.0f", kHeight) + "\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#3a4252\">\n" +
                    "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
  svg += stage_bands(frame, plot.stages) + axes(frame);
  svg += text_at(kLeft, 34, "font-size=\"15\" font-weight=\"bold\"", plot.title) + legend(!marks.empty());
  svg += path_of(frame, thinned(raw, buckets), "stroke=\"#9db4e0\" stroke-width=\"1\"");
  svg += path_of(frame, thinned(mean, buckets), "stroke=\"#1f4fb4\" stroke-width=\"2\"");
  for (const PlotPoint& p : marks)
    svg += "<circle cx=\"" + number(frame.px(p.x)) + "\" cy=\"" + number(frame.py(p.y)) +
           "\" r=\"3.5\" fill=\"#d1495b\"/>\n";
  return svg + "</svg>\n";
}

}  // namespace hanok
