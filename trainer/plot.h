// The loss picture: a self-contained SVG.
#pragma once

#include <string>
#include <vector>

namespace hanok {

struct PlotPoint {
  double x = 0, y = 0;
};
struct PlotStage {
  std::string name;
  double begin = 0, end = 0;  // in x
};
struct LossPlot {
  std::string title;
  std::vector<PlotPoint> loss;      // x = optimizer steps since the start of the run; not finite: left out
  std::vector<PlotPoint> held_out;  // marked by dots
  std::vector<PlotStage> stages;    // shaded in turn and named
};

/// Axes with round ticks, the raw curve pale, its running mean strong (over about a fortieth of the run, stage by
/// stage), the y range without the outermost spikes. More points than pixels are thinned to their bucket's extremes.
std::string loss_svg(const LossPlot& plot);

/// About `wanted` round numbers that cover [low, high]: steps of 1, 2 or 5 times a power of ten.
std::vector<double> round_ticks(double low, double high, int wanted);

}  // namespace hanok
