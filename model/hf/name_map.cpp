#include "model/hf/name_map.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "model/hf/qwen3.h"
#include "model/hf/qwen3_vl.h"
#include "parallel/plan.h"

namespace hanok {
namespace {

struct Family {
  const char* name;
  const char* model_type;
  const NameMap& (*names)();
  void (*read)(const nlohmann::json&, ModelConfig&);
  nlohmann::json (*write)(const ModelConfig&, const std::string&);
};
constexpr Family kFamilies[] = {
    {"qwen3_vl", "qwen3_vl", &qwen3_vl_names, &read_qwen3_vl_config, &write_qwen3_vl_config},
    {"qwen3", "qwen3", &qwen3_names, &read_qwen3_config, &write_qwen3_config},
    {"qwen3_vl_moe", "qwen3_vl_moe", &qwen3_vl_names, &read_qwen3_vl_config, &write_qwen3_vl_config},
    {"qwen3_moe", "qwen3_moe", &qwen3_names, &read_qwen3_config, &write_qwen3_config}};

const Family& family_of(const std::string& name) {
  std::vector<std::string> known;
  for (const Family& family : kFamilies) {
    if (name == family.name) return family;
    known.push_back(family.name);
  }
  HANOK_FAIL(kConfig) << "model.family: got " << name << ", expected one of " << known;
}

/// model.experts_on_disk; auto: what transformers 5 writes of a model that came from nowhere.
std::string layout_of(const ModelConfig& config) {
  if (config.experts_on_disk != "auto") return config.experts_on_disk;
  return config.known_family() == "qwen3_moe" ? "separate" : "fused_out_in";
}

/// What '*' stands for when `name` has the form of `pattern` (an index; empty without a star), or nothing.
std::optional<std::string> match(const std::string& pattern, const std::string& name) {
  const size_t star = pattern.find('*');
  if (star == std::string::npos) return pattern == name ? std::optional<std::string>("") : std::nullopt;
  const size_t tail = pattern.size() - star - 1;
  if (name.size() <= star + tail || name.compare(0, star, pattern, 0, star) != 0 ||
      name.compare(name.size() - tail, tail, pattern, star + 1, tail) != 0)
    return std::nullopt;
  std::string index = name.substr(star, name.size() - star - tail);
  const bool digits = index.find_first_not_of("0123456789") == std::string::npos;
  return digits ? std::optional<std::string>(std::move(index)) : std::nullopt;
}

std::string replace(std::string text, char what, const std::string& with) {
  const size_t at = text.find(what);
  return at == std::string::npos ? text : text.replace(at, 1, with);
}

/// "2 (a, b)", at most ten of them.
std::string listed(const std::vector<std::string>& names) {
  constexpr size_t kMost = 10;
  std::string text = concat(names.size(), " (");
  for (size_t i = 0; i < std::min(names.size(), kMost); ++i) text += (i ? ", " : "") + names[i];
  return text + (names.size() > kMost ? ", ...)" : ")");
}

}  // namespace

NameRow copy(std::string ours, std::string theirs) {
  return {NameRow::Verb::kCopy, std::move(ours), {std::move(theirs)}};
}
NameRow reshaped(std::string ours, std::string theirs, HfShape shape) {
  return {NameRow::Verb::kCopy, std::move(ours), {std::move(theirs)}, shape};
}
NameRow fuse(std::string ours, std::vector<std::string> theirs) {
  return {NameRow::Verb::kFuse, std::move(ours), std::move(theirs)};
}
NameRow stack(std::string ours, std::vector<std::string> theirs) {
  return {NameRow::Verb::kStack, std::move(ours), std::move(theirs)};
}
NameRow transposed(std::string ours, std::string theirs) {
  return {NameRow::Verb::kTranspose, std::move(ours), {std::move(theirs)}};
}
NameRow in_layout(std::string layout, NameRow row) {
  row.layout = std::move(layout);
  return row;
}
NameRow tied(std::string ours_absent, std::string ours) {
  return {NameRow::Verb::kTied, std::move(ours_absent), {std::move(ours)}};
}

std::vector<HfPart> NameMap::parts(const ParamSpec& spec, const ModelConfig& config) const {
  for (const NameRow& row : rows_) {
    if (row.verb == NameRow::Verb::kTied || (!row.layout.empty() && row.layout != layout_of(config))) continue;
    const auto index = match(row.ours, spec.name);
    if (!index) continue;
    std::vector<HfPart> parts;
    switch (row.verb) {
      case NameRow::Verb::kTied:
      case NameRow::Verb::kCopy:
        parts.push_back({.name = replace(row.theirs[0], '*', *index),
                         .shape = row.shape ? row.shape(config) : spec.shape,
                         .size = spec.shape.at(0)});
        break;
      case NameRow::Verb::kFuse: {
        HANOK_REQUIRE(spec.segments.size() == row.theirs.size(), kCheckpoint)
            << spec.name << ": got " << spec.segments.size() << " segments, expected " << row.theirs.size()
            << "; name map; correct the layer that declares it";
        int64_t begin = 0;
        for (size_t i = 0; i < row.theirs.size(); ++i) {
          std::vector<int64_t> shape = spec.shape;
          shape[0] = spec.segments[i].size;
          parts.push_back(
              {.name = replace(row.theirs[i], '*', *index), .shape = shape, .begin = begin, .size = shape[0]});
          begin += shape[0];
        }
        break;
      }
      case NameRow::Verb::kTranspose: {
        std::vector<int64_t> shape = spec.shape;
        std::swap(shape.at(shape.size() - 1), shape.at(shape.size() - 2));
        parts.push_back({.name = replace(row.theirs[0], '*', *index),
                         .shape = std::move(shape),
                         .size = spec.shape[0],
                         .transposed = true});
        break;
      }
      case NameRow::Verb::kStack: {
        const auto pieces = static_cast<int64_t>(row.theirs.size());
        std::vector<int64_t> shape(spec.shape.begin() + 1, spec.shape.end());
        shape.at(0) /= pieces;
        for (int64_t expert = 0; expert < spec.shape.at(0); ++expert)
          for (int64_t piece = 0; piece < pieces; ++piece)
            parts.push_back({.name = replace(replace(row.theirs[piece], '*', *index), '#', std::to_string(expert)),
                             .shape = shape,
                             .begin = expert,
                             .size = 1,
                             .inner_begin = piece * shape[0],
                             .inner_size = shape[0]});
        break;
      }
    }
    return parts;
  }
  HANOK_FAIL(kCheckpoint) << "parameter " << spec.name << ": got no row for it, expected one; name map of family "
                          << config.known_family() << "; add it to model/hf/";
}

void NameMap::check_complete(const std::vector<ParamSpec>& specs,
                             const ModelConfig& config,
                             const std::set<std::string>& hf_names) const {
  std::set<std::string> expected, ours;
  for (const ParamSpec& spec : specs) {
    ours.insert(spec.name);
    for (const HfPart& part : parts(spec, config)) expected.insert(part.name);
  }
  std::set<std::string> allowed;  // a stored copy of a tied weight
  for (const NameRow& row : rows_)
    if (row.verb == NameRow::Verb::kTied && !ours.count(row.ours))
      for (const NameRow& other : rows_)
        if (other.verb == NameRow::Verb::kCopy && other.ours == row.ours) allowed.insert(other.theirs[0]);
  const auto is_ignored = [&](const std::string& name) {
    for (const std::string& glob : ignored_)
      if (glob_match(glob, name)) return true;
    return allowed.count(name) > 0;
  };
  std::vector<std::string> missing, unexpected;
  for (const std::string& name : expected)
    if (!hf_names.count(name)) missing.push_back(name);
  for (const std::string& name : hf_names)
    if (!expected.count(name) && !is_ignored(name)) unexpected.push_back(name);
  std::vector<std::string> faults;
  if (!missing.empty()) faults.push_back("without " + listed(missing) + " of the model");
  if (!unexpected.empty()) faults.push_back("with " + listed(unexpected) + " that the model does not have");
  HANOK_REQUIRE(faults.empty(), kCheckpoint)
      << "weights: got a folder " << faults.front() << (faults.size() > 1 ? ", and " + faults.back() : "")
      << ", expected exactly the model's tensors; check that config.json belongs to these files";
}

std::string expert_layout(const ModelConfig& config, const std::map<std::string, std::vector<int64_t>>& shapes) {
  const DecoderConfig& d = config.decoder;
  ModelConfig unset = config;
  unset.experts_on_disk = "auto";
  for (const auto& [name, shape] : shapes) {
    if (glob_match("**.mlp.experts.*.*_proj.weight", name)) return "separate";
    const bool up = name.ends_with(".mlp.experts.gate_up_proj"), down = name.ends_with(".mlp.experts.down_proj");
    if (!up && !down) continue;
    const int64_t in = up ? d.hidden : d.expert_ffn, out = up ? 2 * d.expert_ffn : d.hidden;
    if (in == out) continue;  // square: the other of the two is not
    if (shape == std::vector<int64_t>{d.experts, in, out}) return "fused_in_out";
    if (shape == std::vector<int64_t>{d.experts, out, in}) return "fused_out_in";
  }
  return layout_of(unset);
}

bool transformers_finds_experts(const ModelConfig& config) {
  if (!config.decoder.is_moe()) return true;
  const std::string layout = layout_of(config);
  return layout == "fused_out_in" || layout == (config.known_family() == "qwen3_moe" ? "separate" : "fused_in_out");
}

const NameMap& name_map_of(const std::string& family) {
  return family_of(family).names();
}

void read_hf_config(const nlohmann::json& hf, ModelConfig& config) {
  HANOK_REQUIRE(hf.is_object() && hf.contains("model_type") && hf["model_type"].is_string(), kConfig)
      << "model_type: got none, expected the config of a Hugging Face model; config.json; fetch the file again";
  HANOK_REQUIRE(!hf.contains("quantization_config") || hf["quantization_config"].is_null(), kConfig)
      << "quantization_config: got a folder of quantised weights, expected bfloat16, float16 or float32; config.json; "
         "take the original model";
  const auto model_type = hf["model_type"].get<std::string>();
  std::vector<std::string> known;
  for (const Family& family : kFamilies) {
    if (model_type == family.model_type) {
      config.family = family.name;
      return family.read(hf, config);
    }
    known.push_back(family.model_type);
  }
  HANOK_FAIL(kConfig) << "model_type: got " << model_type << ", expected one of " << known
                      << "; config.json; this version trains no other architecture";
}

nlohmann::json write_hf_config(const ModelConfig& config, const std::string& dtype) {
  return family_of(config.known_family()).write(config, dtype);
}

}  // namespace hanok
