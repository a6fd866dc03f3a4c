// The spine: one record per weight, made when a layer declares it. Local shapes, initial values, import and export,
// checkpoint shards, optimizer groups, gradient sums and norms are all derived from it, never listed again.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "parallel/groups.h"
#include "parallel/plan.h"

namespace hanok {

/// A part of the cut dim that is cut on its own: [q; k; v] has three, [gate; up] two.
struct Segment {
  int64_t size = 0;  // global, along the cut dim
  int64_t unit = 1;  // granule that stays together (head width)
};

struct Init {
  enum class Kind { kZeros, kOnes, kNormal } kind = Kind::kZeros;
  double std = 0;
};
inline Init zeros() {
  return {Init::Kind::kZeros};
}
inline Init ones() {
  return {Init::Kind::kOnes};
}
inline Init normal(double std) {
  return {Init::Kind::kNormal, std};
}

struct ParamSpec {
  std::string name;            // "decoder.layers.3.attn.qkv.weight"; layer index is global
  std::vector<int64_t> shape;  // global
  int cut_dim = -1;            // -1: whole
  Axis cut_axis = Axis::kTp;
  std::vector<Segment> segments;  // along cut_dim; never empty when cut
  /// Weights of experts are cut twice: dim 0 over ep, and this dim over etp, along these segments. -1: once.
  int inner_dim = -1;
  std::vector<Segment> inner_segments;
  bool uneven = false;  // vocabulary: blocks of ceil(units / parts), the last ones may be short
  Init init;
  /// The gradient of this (whole) weight is partial on every rank of tp, because its input was cut over rows or heads
  /// there.
  bool sum_grad_over_tp = false;
  /// Pipeline stage that holds this weight as well, because the model ties two of its ends; -1: none. Gradients are
  /// summed over both, and the lower stage speaks for the weight.
  int twin = -1;
};

/// The second cut as that of one expert's weight, over etp: a spec without dim 0.
ParamSpec inner_cut(const ParamSpec& spec);

/// Whether the weight is one of experts, cut over ep.
inline bool is_of_experts(const ParamSpec& spec) {
  return spec.cut_dim >= 0 && spec.cut_axis == Axis::kEp;
}

/// Whether ranks of tp hold gradients of the same part of this weight, which are added: of a whole one where each sees
/// its own rows, of a cut one where ranges are repeated.
bool is_shared_over_tp(const ParamSpec& spec, const Groups& groups);

/// Whether this rank speaks for its part of the weight (saves it, counts it), and no other stage, or rank of tp or etp,
/// that holds the same part whole. What single ranges of a cut repeat is told by local_ranges().
inline bool speaks_for(const ParamSpec& spec, const Groups& groups) {
  if (spec.twin >= 0 && groups.at.pp >= spec.twin) return false;
  if (is_of_experts(spec)) return spec.inner_dim >= 0 || groups.etp->rank() == 0;
  return spec.cut_dim >= 0 || groups.tp->rank() == 0;
}

/// A stretch of the cut dim that this rank holds.
struct LocalRange {
  int64_t global_begin = 0;  // along cut_dim, in the global tensor
  int64_t local_begin = 0;   // along cut_dim, in the local tensor
  int64_t size = 0;
  int segment = 0;
  /// Units fewer than parts are replicated: this stretch lives on ranks [replica_first, replica_first + replicas) of
  /// the axis. Its gradients are summed over them, and the norm counts them once.
  int replicas = 1;
  int replica_index = 0;  // 0 on the rank that speaks for it (saves it, counts it)
};

/// What rank `index` of `parts` holds along the cut dim, in order. A whole weight: one range over dim 0 with replicas
/// = 1. errors: kShape naming the parameter if a segment's units neither divide by parts nor parts by units (and not
/// uneven).
std::vector<LocalRange> local_ranges(const ParamSpec& spec, int index, int parts);
std::vector<int64_t> local_shape(const ParamSpec& spec, int index, int parts);
/// Same, for the rank that `groups` describes; ranges are those along cut_dim, shapes know both cuts.
std::vector<LocalRange> local_ranges(const ParamSpec& spec, const Groups& groups);
std::vector<int64_t> local_shape(const ParamSpec& spec, const Groups& groups);

/// Contiguous stretches of the row-major flattened global tensor that make up the local one, in local order.
/// One per segment when dim 0 is cut, one per row when dim 1 is; runs that follow each other in the global tensor are
/// joined.
struct FlatRun {
  int64_t global_begin = 0, local_begin = 0, size = 0;
};
std::vector<FlatRun> flat_runs(const ParamSpec& spec, int index, int parts);
std::vector<FlatRun> flat_runs(const ParamSpec& spec, const Groups& groups);

struct Param {
  ParamSpec spec;
  Tensor value;           // local piece; a leaf; dtype and device of the model
  bool trainable = true;  // false: requires_grad off, no optimizer state
};

/// Every weight of (this rank's part of) a model in declaration order. Tied weights appear once.
using ParamTable = std::vector<Param>;

Param& find_param(ParamTable& params, std::string_view name);  // errors: kShape if absent

}  // namespace hanok
