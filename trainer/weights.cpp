// Reading a Hugging Face folder.
#include "trainer/weights.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/log.h"
#include "trainer/progress.h"
#include "trainer/side_files.h"
#include "trainer/weight_parts.h"

namespace hanok {
namespace {

/// A stored head of a tied model must say what the embedding says: one of the two would be lost otherwise.
void check_tied_copy(const WeightFolder& weights, const TiedName& tied, const std::string& folder) {
  const Tensor copy = weights.view(tied.copy), original = weights.view(tied.original);
  const bool is_alike = copy.scalar_type() == original.scalar_type() && copy.sizes() == original.sizes();
  HANOK_REQUIRE(is_alike && at::equal(copy, original), kCheckpoint)
      << tied.copy << ": got values other than those of " << tied.original
      << ", expected the same, for config.json says tie_word_embeddings; " << folder
      << "; say tie_word_embeddings: false, or remove the tensor";
  weights.forget(tied.copy);
  weights.forget(tied.original);
}

/// A weight that is not a number makes every loss one.
void check_finite(const Tensor& value, const std::string& name, const std::string& folder) {
  HANOK_REQUIRE(has_finite_values(value), kCheckpoint)
      << name << ": got values that are not finite, expected numbers; " << folder
      << "; the weights are damaged or come from a training that diverged: fetch or write them again";
}

/// Other numbers mean something only with scales beside them, or are no weights.
void check_dtypes(const std::vector<std::string>& names, const WeightFolder& weights, const std::string& folder) {
  for (const std::string& name : names) {
    if (!weights.contains(name)) continue;  // told with all that are missing
    const at::ScalarType dtype = weights.entry(name).dtype;
    const bool is_plain = dtype == at::kDouble || dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16;
    HANOK_REQUIRE(is_plain, kCheckpoint)
        << name << ": got dtype " << dtype_name(dtype) << ", expected F64, F32, F16 or BF16; " << folder
        << "; quantised weights are not supported: use the folder that they were made from, or dequantise them";
  }
}

/// A rule that knows no files is broken: the folder is named.
[[noreturn]] void fail_in(const std::string& folder, const Error& error) {
  throw Error(error.kind(), concat(error.what(), " (model.path: ", folder, ")"));
}

}  // namespace

bool has_finite_values(const Tensor& value) {
  if (value.numel() == 0) return true;
  const auto [low, high] = at::aminmax(value.detach());
  return low.isfinite().logical_and(high.isfinite()).item<bool>();
}

void read_model_folder(ModelConfig& config) {
  const std::string file = config.path + "/config.json";
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(file, error);
  HANOK_REQUIRE(std::filesystem::exists(status), kConfig)
      << "model.path: got " << config.path << ", expected a Hugging Face folder with config.json; "
      << (std::filesystem::is_directory(config.path, error) ? "this folder has none" : "there is no such folder")
      << "; correct model.path";
  HANOK_REQUIRE(std::filesystem::is_regular_file(status), kConfig)
      << "config.json: got something that is not a file, expected the one of a Hugging Face folder; " << file
      << "; correct model.path";
  const nlohmann::json hf = read_json_file(file);
  try {
    read_hf_config(hf, config);
  } catch (const Error& error) {
    fail_in(config.path, error);
  }
}

void load_weights(Vlm& model, const std::string& folder) {
  const at::NoGradGuard no_grad;
  const WeightFolder weights(folder);
  ModelConfig config = model.config();
  config.experts_on_disk = expert_layout(config, weights);  // whatever an export will write
  ParamTable& params = model.params();
  const TiedName tied = tied_name(model.whole(), config);
  const auto names = weights.names();
  std::set<std::string> present(names.begin(), names.end());
  std::vector<std::string> used = {tied.copy};
  for (const WeightPart& part : weight_parts(model.whole(), config)) used.push_back(part.part.name);
  check_dtypes(used, weights, folder);
  if (present.erase(tied.copy) > 0 && model.groups().rank == 0) check_tied_copy(weights, tied, folder);
  std::vector<ParamSpec> specs;
  for (const Param& param : model.whole()) specs.push_back(param.spec);
  try {
    name_map_of(config.known_family()).check_complete(specs, config, present);
  } catch (const Error& error) {
    fail_in(folder, error);
  }

  const std::vector<WeightPart> parts = weight_parts(params, config);
  Progress progress("reading weights", static_cast<int64_t>(parts.size()), "tensors");
  std::set<at::ScalarType> rounded;
  for (size_t i = 0; i < parts.size(); ++i) {
    const HfPart& part = parts[i].part;
    Param& param = params[parts[i].param];
    const TensorEntry& entry = weights.entry(part.name);
    HANOK_REQUIRE(entry.shape == part.shape, kShape)
        << part.name << ": got shape " << entry.shape << ", expected " << part.shape << "; " << folder
        << "; config.json and weights are of different models";
    if (c10::elementSize(entry.dtype) > c10::elementSize(param.value.scalar_type())) rounded.insert(entry.dtype);
    const Tensor stored = parts[i].as_ours(weights.view(part.name));
    for (const Overlap& overlap : overlaps(param.spec, part, cut_place(param.spec, model.groups()), false))
      local_view(param.value, part, overlap).copy_(part_view(stored, overlap));
    weights.forget(part.name);
    progress.update(static_cast<int64_t>(i) + 1);
  }
  for (const Param& param : params) check_finite(param.value, param.spec.name, folder);
  for (const at::ScalarType dtype : rounded) {
    HANOK_LOG_RANK0(INFO) << "weights of " << folder << " are " << c10::toString(dtype) << "; the model rounds them to "
                          << c10::toString(model.dtype()) << " (model.dtype)";
  }
}

}  // namespace hanok
