// Charts as SVG: loss.svg and the charts of report.html.
#pragma once

#include <cmath>
#include <string>
#include <vector>

namespace hanok {

struct PlotPoint {
  double x = 0, y = 0;
};
struct PlotMark {
  double x = 0, y = 0;
  double low = NAN, high = NAN;  // a whisker, where both are finite
  std::string note;              // shown when pointed at
};
struct PlotStage {
  std::string name;
  double begin = 0, end = 0;  // in x
};

/// Points that are not finite are left out.
struct Chart {
  std::string title, unit;  // unit: what the y axis counts
  std::string curve_name = "a step";
  std::vector<PlotPoint> curve;  // x = optimizer steps since the start of the run, ascending
  bool smoothed = true;          // the curve pale, its running mean strong; else the curve as it is
  std::string marks_name = "held out";
  std::vector<PlotMark> marks;
  std::vector<PlotStage> stages;  // shaded in turn and named
  double level = NAN;             // a dashed line
  std::string level_name;
  double floor = NAN, ceiling = NAN;  // the y range never leaves them
  double width = 900, height = 460;
};

/// Axes with round ticks; the running mean is over about a fortieth of the run (in short runs five steps), stage by
/// stage; the y range leaves out the outermost spikes. More points than pixels are thinned to their bucket's extremes.
/// Texts and lines have classes, coloured by chart_style().
std::string chart_svg(const Chart& chart);
/// The same as a file of its own, on white.
std::string chart_file(const Chart& chart);
/// CSS for all charts of a page.
std::string chart_style(bool is_dark);

/// About `wanted` round numbers that cover [low, high]: steps of 1, 2 or 5 times a power of ten.
std::vector<double> round_ticks(double low, double high, int wanted);
/// Text for HTML and SVG, attributes included; control characters, which neither may hold, become spaces.
std::string escaped(const std::string& text);

}  // namespace hanok
