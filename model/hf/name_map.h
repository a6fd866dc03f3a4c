// Hugging Face tensor names <-> ours, as a table of a few verbs that reads both ways.
#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "parallel/param.h"

namespace hanok {

/// A stretch of one of our global tensors (along `dim`) that is one HF tensor, reshaped if need be.
struct HfPart {
  std::string name;                         // HF tensor
  std::vector<int64_t> shape;               // HF shape; the same elements in the same row-major order as the stretch
  int dim = 0;                              // of ours, along which parts are laid end to end
  int64_t begin = 0, size = 0;              // of ours, along dim
  int64_t inner_begin = 0, inner_size = 0;  // of the stretch, along dim 1; size 0: all of it
  bool transposed = false;                  // the stretch with its last two dims swapped is the HF tensor
};

/// Shape of the HF tensor where it is not that of the stretch.
using HfShape = std::vector<int64_t> (*)(const ModelConfig&);

/// Pattern rows; '*' is a layer index, the same on both sides.
struct NameRow {
  enum class Verb { kCopy, kFuse, kStack, kTranspose, kTied } verb;
  std::string ours;
  std::vector<std::string> theirs;
  HfShape shape = nullptr;
  std::string layout = {};  // holds only where experts lie so (expert_layout); empty: always
};
NameRow copy(std::string ours, std::string theirs);                     // the same tensor
NameRow reshaped(std::string ours, std::string theirs, HfShape shape);  // the same values in another shape
NameRow fuse(std::string ours, std::vector<std::string> theirs);        // segments of ParamSpec, in order
/// '#' = expert index, dim 0 of ours; more than one: equal parts of dim 1, in order.
NameRow stack(std::string ours, std::vector<std::string> theirs);
NameRow transposed(std::string ours, std::string theirs);  // the last two dims are swapped
NameRow in_layout(std::string layout, NameRow row);
NameRow tied(std::string ours_absent,
             std::string ours);  // where the head shares the embedding, a stored head is ignored

class NameMap {
 public:
  /// `ignored`: globs of HF names that are no weights.
  NameMap(std::vector<NameRow> rows, std::vector<std::string> ignored)
      : rows_(std::move(rows)), ignored_(std::move(ignored)) {}
  /// The HF tensors that make up one of our parameters, in order. errors: kCheckpoint if no row matches
  std::vector<HfPart> parts(const ParamSpec& spec, const ModelConfig& config) const;
  /// errors: kCheckpoint listing up to ten missing and ten unexpected names from each side
  void check_complete(const std::vector<ParamSpec>& specs,
                      const ModelConfig& config,
                      const std::set<std::string>& hf_names) const;

 private:
  std::vector<NameRow> rows_;
  std::vector<std::string> ignored_;
};

/// errors: kConfig listing the known families
const NameMap& name_map_of(const std::string& family);

/// How a folder keeps its experts, from the shapes of its tensors: a value of model.experts_on_disk. Without experts,
/// or with tensors of no known form (the check of names and shapes will say so): what transformers 5 would write.
/// Published Qwen3-VL-MoE folders have fused_in_out, transformers 5 writes fused_out_in (and reads both), Qwen3-MoE
/// ones are separate.
std::string expert_layout(const ModelConfig& config, const std::map<std::string, std::vector<int64_t>>& shapes);

/// Whether transformers 5 finds the experts of a folder that keeps them as model.experts_on_disk says. Where it does
/// not, it fills them at random.
bool transformers_finds_experts(const ModelConfig& config);

/// config.json (either dialect: rope_scaling + rope_theta, or rope_parameters) -> model numbers, and back. `path`,
/// `tokenizer` and `dtype` are left alone. Written: both, so that transformers 4 and 5 read it.
/// errors: kConfig naming architecture or key: got, expected
void read_hf_config(const nlohmann::json& hf, ModelConfig& config);
nlohmann::json write_hf_config(const ModelConfig& config, const std::string& dtype);

}  // namespace hanok
