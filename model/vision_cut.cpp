#include "model/vision_cut.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace hanok {
namespace {

struct Frame {
  int64_t height, width;  // in patches
  int64_t patch = 0;      // first one
  int rank = 0;
  int64_t patches() const { return height * width; }
};

std::vector<Frame> frames_of(const Tensor& grid_I3) {
  std::vector<Frame> frames;
  const auto grid = grid_I3.accessor<int64_t, 2>();
  int64_t patch = 0;
  for (int64_t i = 0; i < grid.size(0); ++i) {
    for (int64_t t = 0; t < grid[i][0]; ++t) {
      frames.push_back({.height = grid[i][1], .width = grid[i][2], .patch = patch});
      patch += frames.back().patches();
    }
  }
  return frames;
}

void deal(std::vector<Frame>& frames, int parts, double linear_patches) {
  const auto cost = [&](const Frame& frame) {
    const auto patches = static_cast<double>(frame.patches());
    return patches * (patches + linear_patches);
  };
  std::vector<size_t> order(frames.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(
      order.begin(), order.end(), [&](size_t a, size_t b) { return frames[a].patches() > frames[b].patches(); });
  std::vector<double> load(parts, 0.0);
  for (const size_t i : order) {
    const auto least = std::min_element(load.begin(), load.end());
    frames[i].rank = static_cast<int>(least - load.begin());
    *least += cost(frames[i]);
  }
}

Tensor as_tensor(const std::vector<int64_t>& values) {
  return at::tensor(values, at::kLong);
}

}  // namespace

VisionCut cut_vision(
    const Tensor& grid_I3, const Tensor& vision_index_M, const RowCut& cut, int rank, const VisionCutting& options) {
  const auto parts = static_cast<int>(cut.of_rank.size());
  const int64_t per_token = options.merge * options.merge;
  std::vector<Frame> frames = frames_of(grid_I3);
  deal(frames, parts, options.linear_patches);
  const int64_t patches = frames.empty() ? 0 : frames.back().patch + frames.back().patches();
  HANOK_REQUIRE(patches == vision_index_M.size(0) * per_token, kShape)
      << "vision tokens: got " << patches / per_token << " from the pictures, expected " << vision_index_M.size(0)
      << " placeholders in the text; model input";
  const RowCut::Places places = cut.places();
  const auto* rank_of = places.rank_T.const_data_ptr<int64_t>();
  const auto* row_of = places.row_T.const_data_ptr<int64_t>();
  const auto* index = vision_index_M.const_data_ptr<int64_t>();

  VisionCut out;
  out.exchange.splits = {.send = std::vector<int64_t>(parts), .receive = std::vector<int64_t>(parts)};
  std::vector<int64_t> grid;
  std::vector<std::vector<int64_t>> sent_to(parts), rows_from(parts);
  int64_t own_tokens = 0;
  for (const Frame& frame : frames) {
    if (frame.rank == rank) {
      grid.insert(grid.end(), {1, frame.height, frame.width});
      out.patches.push_back({frame.patch, frame.patch + frame.patches()});
    }
    for (int64_t m = frame.patch / per_token; m < (frame.patch + frame.patches()) / per_token; ++m) {
      const int64_t to = rank_of[index[m]];
      if (frame.rank == rank) sent_to[to].push_back(own_tokens++);
      if (to == rank) rows_from[frame.rank].push_back(row_of[index[m]]);
    }
  }
  if (grid.empty()) {
    grid = {1, options.merge, options.merge};
    out.stand_in_patches = per_token;
  }
  std::vector<int64_t> order, rows;
  for (int r = 0; r < parts; ++r) {
    out.exchange.splits.send[r] = static_cast<int64_t>(sent_to[r].size());
    out.exchange.splits.receive[r] = static_cast<int64_t>(rows_from[r].size());
    order.insert(order.end(), sent_to[r].begin(), sent_to[r].end());
    rows.insert(rows.end(), rows_from[r].begin(), rows_from[r].end());
  }
  out.grid_I3 = as_tensor(grid).view({-1, 3});
  out.exchange.order_S = as_tensor(order);
  out.vision_index_M = as_tensor(rows);
  return out;
}

}  // namespace hanok
