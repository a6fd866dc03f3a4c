#include "trainer/weight_parts.h"

#include <algorithm>

#include "base/error.h"

namespace hanok {
namespace {

int64_t count(const std::vector<int64_t>& shape) {
  int64_t out = 1;
  for (const int64_t size : shape) out *= size;
  return out;
}

}  // namespace

std::vector<WeightPart> weight_parts(const ParamTable& params, const ModelConfig& config) {
  const NameMap& map = name_map_of(config.known_family());
  std::vector<WeightPart> out;
  for (size_t i = 0; i < params.size(); ++i) {
    for (HfPart& part : map.parts(params[i].spec, config)) {
      std::vector<int64_t> shape = params[i].spec.shape;
      shape[part.dim] = part.size;
      if (part.inner_size > 0) shape[1] = part.inner_size;
      HANOK_REQUIRE(count(shape) == count(part.shape), kShape)
          << part.name << ": got shape " << part.shape << ", expected as many elements as " << shape << " of "
          << params[i].spec.name << "; name map of " << config.known_family();
      out.push_back({static_cast<int>(i), std::move(part), std::move(shape)});
    }
  }
  return out;
}

Tensor WeightPart::as_ours(const Tensor& theirs) const {
  return part.transposed ? theirs.transpose(-1, -2) : theirs.reshape(our_shape);
}

Tensor WeightPart::as_theirs(const Tensor& stretch) const {
  return part.transposed ? stretch.transpose(-1, -2).contiguous() : stretch.reshape(part.shape);
}

std::string expert_layout(const ModelConfig& config, const WeightFolder& folder) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const std::string& name : folder.names()) shapes[name] = folder.entry(name).shape;
  return expert_layout(config, shapes);
}

const Comm& cut_group(const ParamSpec& spec, const Groups& groups) {
  return is_of_experts(spec) ? *groups.ep : *groups.tp;
}

CutPlace cut_place(const ParamSpec& spec, const Groups& groups) {
  const Comm& cut = cut_group(spec, groups);
  if (spec.inner_dim < 0) return {cut.rank(), cut.size()};
  return {cut.rank(), cut.size(), groups.etp->rank(), groups.etp->size()};
}

TiedName tied_name(const ParamTable& params, const ModelConfig& config) {
  if (!config.decoder.tied) return {};
  const auto embed =
      std::find_if(params.begin(), params.end(), [](const Param& p) { return p.spec.name == "decoder.embed.weight"; });
  if (embed == params.end()) return {};
  ModelConfig untied = config;
  untied.decoder.tied = false;
  ParamSpec head = embed->spec;
  head.name = "decoder.head.weight";
  const NameMap& map = name_map_of(config.known_family());
  return {map.parts(head, untied).at(0).name, map.parts(embed->spec, config).at(0).name};
}

namespace {

/// An overlap of whole experts -> its parts that lie on a rank of etp.
std::vector<Overlap> inner_overlaps(const ParamSpec& spec,
                                    const HfPart& part,
                                    const Overlap& whole,
                                    const CutPlace& place) {
  // The part may be a stretch of dim 1 (gate, or up).
  const bool is_stretch = part.inner_size > 0 && spec.inner_dim == 1;
  const int64_t begin = is_stretch ? part.inner_begin : 0;
  const int64_t end = is_stretch ? begin + part.inner_size : spec.shape[spec.inner_dim];
  std::vector<Overlap> out;
  for (const LocalRange& range : local_ranges(inner_cut(spec), place.inner, place.inner_parts)) {
    const int64_t first = std::max(range.global_begin, begin), last = std::min(range.global_begin + range.size, end);
    if (first >= last) continue;
    Overlap overlap = whole;
    overlap.inner_dim = spec.inner_dim;
    overlap.inner_in_part = first - begin;
    overlap.inner_in_local = range.local_begin + first - range.global_begin;
    overlap.inner_size = last - first;
    out.push_back(overlap);
  }
  return out;
}

}  // namespace

std::vector<Overlap> overlaps(const ParamSpec& spec, const HfPart& part, const CutPlace& place, bool only_spoken) {
  if (spec.cut_dim < 0) {
    if (only_spoken && place.index > 0) return {};
    return {{.dim = part.dim, .in_local = part.begin, .size = part.size}};
  }
  std::vector<Overlap> out;
  for (const LocalRange& range : local_ranges(spec, place.index, place.parts)) {
    if (only_spoken && range.replica_index != 0) continue;
    Overlap overlap{spec.cut_dim, range.global_begin, range.local_begin, range.size};
    if (spec.cut_dim == part.dim) {
      const int64_t first = std::max(range.global_begin, part.begin);
      const int64_t last = std::min(range.global_begin + range.size, part.begin + part.size);
      if (first >= last) continue;
      overlap = {spec.cut_dim, first - part.begin, range.local_begin + first - range.global_begin, last - first};
    }
    if (place.inner_parts == 1) {
      out.push_back(overlap);
    } else {
      for (const Overlap& piece : inner_overlaps(spec, part, overlap, place)) out.push_back(piece);
    }
  }
  return out;
}

Tensor local_view(const Tensor& local, const HfPart& part, const Overlap& overlap) {
  const bool is_cut_elsewhere = overlap.dim != part.dim;
  Tensor stretch = is_cut_elsewhere ? local.narrow(part.dim, part.begin, part.size) : local;
  if (part.inner_size > 0 && overlap.inner_dim != 1) stretch = stretch.narrow(1, part.inner_begin, part.inner_size);
  if (overlap.inner_dim >= 0) stretch = stretch.narrow(overlap.inner_dim, overlap.inner_in_local, overlap.inner_size);
  return stretch.narrow(overlap.dim, overlap.in_local, overlap.size);
}

Tensor part_view(const Tensor& stretch, const Overlap& overlap) {
  const Tensor out = stretch.narrow(overlap.dim, overlap.in_part, overlap.size);
  return overlap.inner_dim < 0 ? out : out.narrow(overlap.inner_dim, overlap.inner_in_part, overlap.inner_size);
}

}  // namespace hanok
