#include "parallel/param.h"

#include <algorithm>
#include <cassert>
#include <numeric>

#include "base/error.h"

namespace hanok {

namespace {

int64_t product(const std::vector<int64_t>& shape, size_t begin, size_t end) {
  return std::accumulate(shape.begin() + begin, shape.begin() + end, int64_t{1}, std::multiplies<>());
}

void check_segments(const ParamSpec& spec) {
  HANOK_REQUIRE(spec.cut_dim < static_cast<int>(spec.shape.size()), kShape)
      << spec.name << ": got cut dim " << spec.cut_dim << ", expected a dim of shape " << spec.shape
      << "; parameter table; correct the layer or its plan rule";
  int64_t sum = 0;
  for (const Segment& segment : spec.segments) {
    HANOK_REQUIRE(segment.unit >= 1 && segment.size >= 0 && segment.size % segment.unit == 0, kShape)
        << spec.name << ": got a segment of " << segment.size << " in units of " << segment.unit
        << ", expected whole units; dim " << spec.cut_dim << " of shape " << spec.shape
        << "; check the head width and head counts of the model";
    sum += segment.size;
  }
  HANOK_REQUIRE(sum == spec.shape[spec.cut_dim], kShape)
      << spec.name << ": got segments that add up to " << sum << ", expected " << spec.shape[spec.cut_dim] << "; dim "
      << spec.cut_dim << " of shape " << spec.shape << "; correct the layer that declares it";
}

/// The piece of one segment on this rank, without offsets; size 0 if it has none.
LocalRange cut_segment(const ParamSpec& spec, const Segment& segment, int index, int parts) {
  const int64_t units = segment.size / segment.unit;
  LocalRange range;
  if (spec.uneven) {
    const int64_t block = (units + parts - 1) / parts;
    const int64_t begin = std::min(index * block, units);
    range.global_begin = begin * segment.unit;
    range.size = (std::min(begin + block, units) - begin) * segment.unit;
  } else if (units % parts == 0) {
    range.size = units / parts * segment.unit;
    range.global_begin = index * range.size;
  } else {
    HANOK_REQUIRE(units > 0 && parts % units == 0, kShape)
        << spec.name << ": got " << units << " units of " << segment.unit << " along dim " << spec.cut_dim
        << ", expected a multiple or a divisor of " << parts << " ranks; shape " << spec.shape
        << "; choose a parallel size that fits the model's head counts and widths";
    range.replicas = static_cast<int>(parts / units);
    range.replica_index = index % range.replicas;
    range.size = segment.unit;
    range.global_begin = index / range.replicas * segment.unit;
  }
  return range;
}

/// Index and size of the axis that cuts this weight.
std::pair<int, int> place(const ParamSpec& spec, const Groups& groups) {
  if (spec.cut_dim < 0) return {0, 1};
  assert(spec.cut_axis == Axis::kTp || spec.cut_axis == Axis::kEp);
  const Comm& comm = spec.cut_axis == Axis::kEp ? *groups.ep : *groups.tp;
  return {comm.rank(), comm.size()};
}

}  // namespace

std::vector<LocalRange> local_ranges(const ParamSpec& spec, int index, int parts) {
  assert(index >= 0 && index < parts);
  if (spec.cut_dim < 0) return {{.size = spec.shape.empty() ? 1 : spec.shape[0]}};
  check_segments(spec);
  std::vector<LocalRange> ranges;
  int64_t global = 0, local = 0;
  for (size_t i = 0; i < spec.segments.size(); ++i) {
    LocalRange range = cut_segment(spec, spec.segments[i], index, parts);
    range.global_begin += global;
    range.local_begin = local;
    range.segment = static_cast<int>(i);
    global += spec.segments[i].size;
    local += range.size;
    if (range.size > 0) ranges.push_back(range);
  }
  return ranges;
}

std::vector<int64_t> local_shape(const ParamSpec& spec, int index, int parts) {
  std::vector<int64_t> shape = spec.shape;
  if (spec.cut_dim < 0) return shape;
  shape[spec.cut_dim] = 0;
  for (const LocalRange& range : local_ranges(spec, index, parts)) shape[spec.cut_dim] += range.size;
  return shape;
}

bool is_shared_over_tp(const ParamSpec& spec, const Groups& groups) {
  if (groups.tp->size() == 1) return false;
  if (spec.cut_dim < 0) return spec.sum_grad_over_tp;
  const std::vector<LocalRange> ranges = local_ranges(spec, groups);
  return std::any_of(ranges.begin(), ranges.end(), [](const LocalRange& range) { return range.replicas > 1; });
}

std::vector<LocalRange> local_ranges(const ParamSpec& spec, const Groups& groups) {
  const auto [index, parts] = place(spec, groups);
  return local_ranges(spec, index, parts);
}

ParamSpec inner_cut(const ParamSpec& spec) {
  assert(spec.cut_dim == 0 && spec.inner_dim > 0);
  return {.name = spec.name,
          .shape = {spec.shape.begin() + 1, spec.shape.end()},
          .cut_dim = spec.inner_dim - 1,
          .segments = spec.inner_segments};
}

std::vector<int64_t> local_shape(const ParamSpec& spec, const Groups& groups) {
  const auto [index, parts] = place(spec, groups);
  std::vector<int64_t> shape = local_shape(spec, index, parts);
  if (spec.inner_dim >= 0) {
    const std::vector<int64_t> inner = local_shape(inner_cut(spec), groups.etp->rank(), groups.etp->size());
    std::copy(inner.begin(), inner.end(), shape.begin() + 1);
  }
  return shape;
}

std::vector<FlatRun> flat_runs(const ParamSpec& spec, int index, int parts) {
  if (spec.cut_dim < 0) {
    const int64_t size = product(spec.shape, 0, spec.shape.size());
    return size > 0 ? std::vector<FlatRun>{{.size = size}} : std::vector<FlatRun>{};
  }
  const std::vector<LocalRange> ranges = local_ranges(spec, index, parts);
  const int64_t outer = product(spec.shape, 0, spec.cut_dim);
  const int64_t inner = product(spec.shape, spec.cut_dim + 1, spec.shape.size());
  const int64_t global_size = spec.shape[spec.cut_dim];
  const int64_t local_size = local_shape(spec, index, parts)[spec.cut_dim];
  std::vector<FlatRun> runs;
  for (int64_t row = 0; row < outer; ++row) {
    for (const LocalRange& range : ranges) {
      const FlatRun run{.global_begin = (row * global_size + range.global_begin) * inner,
                        .local_begin = (row * local_size + range.local_begin) * inner,
                        .size = range.size * inner};
      if (run.size == 0) continue;
      if (!runs.empty() && runs.back().global_begin + runs.back().size == run.global_begin) {
        runs.back().size += run.size;  // local runs are adjacent by construction
      } else {
        runs.push_back(run);
      }
    }
  }
  return runs;
}

std::vector<FlatRun> flat_runs(const ParamSpec& spec, const Groups& groups) {
  const auto [index, parts] = place(spec, groups);
  if (spec.inner_dim < 0 || groups.etp->size() == 1) return flat_runs(spec, index, parts);
  const std::vector<FlatRun> of_expert = flat_runs(inner_cut(spec), groups.etp->rank(), groups.etp->size());
  const std::vector<int64_t> local = local_shape(spec, groups);
  const int64_t global_size = product(spec.shape, 1, spec.shape.size()), local_size = product(local, 1, local.size());
  std::vector<FlatRun> runs;
  for (const LocalRange& range : local_ranges(spec, index, parts)) {
    for (int64_t e = 0; e < range.size; ++e)
      for (const FlatRun& run : of_expert)
        runs.push_back({.global_begin = (range.global_begin + e) * global_size + run.global_begin,
                        .local_begin = (range.local_begin + e) * local_size + run.local_begin,
                        .size = run.size});
  }
  return runs;
}

Param& find_param(ParamTable& params, std::string_view name) {
  for (Param& param : params) {
    if (param.spec.name == name) return param;
  }
  HANOK_FAIL(kShape) << "parameter " << name << ": got none of that name, expected one of " << params.size()
                     << "; parameter table of this rank; check the name (trainer plan prints the table)";
}

}  // namespace hanok
