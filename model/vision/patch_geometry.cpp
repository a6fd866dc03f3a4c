#include "model/vision/patch_geometry.h"

#include <cmath>

#include "base/error.h"

namespace hanok {
namespace {

/// The two table rows that position `index` of `size` falls between, and their shares; in f32 as the reference library
/// does.
struct AxisTaps {
  int64_t low, high;
  float low_share, high_share;
};

AxisTaps axis_taps(int64_t index, int64_t size, int64_t edge) {
  const float where =
      static_cast<float>(index) * static_cast<float>(edge - 1) / static_cast<float>(std::max<int64_t>(size - 1, 1));
  const float floor = std::floor(where);
  const auto clamp = [&](int64_t row) { return std::min(std::max<int64_t>(row, 0), edge - 1); };
  const auto share = [&](float offset) { return std::max(1.0f - std::abs(where - floor - offset), 0.0f); };
  return {clamp(static_cast<int64_t>(floor)), clamp(static_cast<int64_t>(floor) + 1), share(0), share(1)};
}

}  // namespace

PatchGeometry patch_geometry(const Tensor& grid_I3,
                             int64_t merge,
                             int64_t table_edge,
                             const std::function<int64_t(int64_t)>& padded) {
  HANOK_REQUIRE(grid_I3.dim() == 2 && grid_I3.size(1) == 3 && grid_I3.is_cpu() && grid_I3.scalar_type() == at::kLong,
                kShape)
      << "picture grids: got shape " << grid_I3.sizes() << ", expected host int64 [I, 3]";
  const auto grid = grid_I3.accessor<int64_t, 2>();
  PatchGeometry geometry;
  std::vector<int32_t> starts{0};
  for (int64_t i = 0; i < grid.size(0); ++i) {
    const int64_t t = grid[i][0], h = grid[i][1], w = grid[i][2];
    HANOK_REQUIRE(t > 0 && h > 0 && w > 0 && h % merge == 0 && w % merge == 0, kShape)
        << "picture grid: got " << t << " x " << h << " x " << w
        << ", expected positive sizes, rows and columns a multiple of " << merge << "; picture " << i;
    geometry.rows += t * h * w;
    for (int64_t frame = 0; frame < t; ++frame) starts.push_back(starts.back() + static_cast<int32_t>(h * w));
  }
  const int64_t total = padded(geometry.rows);
  if (total > geometry.rows) starts.push_back(static_cast<int32_t>(total));
  geometry.frame_starts = at::tensor(starts, at::kInt);
  geometry.position_P2 = at::zeros({total, 2}, at::kLong);
  geometry.taps = {.index_PK = at::zeros({total, 4}, at::kLong), .weight_PK = at::zeros({total, 4}, at::kFloat)};
  auto position = geometry.position_P2.accessor<int64_t, 2>();
  auto index = geometry.taps.index_PK.accessor<int64_t, 2>();
  auto weight = geometry.taps.weight_PK.accessor<float, 2>();
  int64_t patch = 0;
  for (int64_t i = 0; i < grid.size(0); ++i) {
    const int64_t h = grid[i][1], w = grid[i][2], per_block = merge * merge, blocks_w = w / merge;
    for (int64_t n = 0; n < grid[i][0] * h * w; ++n, ++patch) {
      const int64_t within = n % (h * w), block = within / per_block, inside = within % per_block;
      const int64_t row = block / blocks_w * merge + inside / merge, column = block % blocks_w * merge + inside % merge;
      position[patch][0] = row;
      position[patch][1] = column;
      const AxisTaps y = axis_taps(row, h, table_edge), x = axis_taps(column, w, table_edge);
      index[patch][0] = y.low * table_edge + x.low;
      index[patch][1] = y.low * table_edge + x.high;
      index[patch][2] = y.high * table_edge + x.low;
      index[patch][3] = y.high * table_edge + x.high;
      weight[patch][0] = y.low_share * x.low_share;
      weight[patch][1] = y.low_share * x.high_share;
      weight[patch][2] = y.high_share * x.low_share;
      weight[patch][3] = y.high_share * x.high_share;
    }
  }
  return geometry;
}

}  // namespace hanok
