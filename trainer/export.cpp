// Writing a Hugging Face folder: world rank 0 writes, and asks the other ranks for one tensor at a time.

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <set>

#include "base/error.h"
#include "base/log.h"
#include "dataio/file_io.h"
#include "dataio/file_lock.h"
#include "dataio/tensor_store.h"
#include "trainer/agree.h"
#include "trainer/progress.h"
#include "trainer/side_files.h"
#include "trainer/weight_parts.h"
#include "trainer/weights.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;

/// The model's config with the layout of experts that the export writes: the source folder's, if nothing else is asked
/// for. Collective over the control group.
ModelConfig written_config(const Vlm& model, const ExportOptions& options) {
  ModelConfig config = model.config();
  if (!config.decoder.is_moe() || config.experts_on_disk != "auto" || options.source_folder.empty()) return config;
  Comm& control = *model.groups().control;
  run_together(control, [&] {
    if (control.rank() == 0) config.experts_on_disk = expert_layout(config, WeightFolder(options.source_folder));
  });
  config.experts_on_disk = broadcast_text(config.experts_on_disk, 0, control);
  return config;
}

/// Brings the pieces of one tensor from the ranks that cut it to world rank 0. Ranks that only repeat weights stay
/// silent.
class Gatherer {
 public:
  Gatherer(const Vlm& model, const ModelConfig& config) : model_(model), parts_(weight_parts(model.whole(), config)) {
    for (const Param& param : model.params()) own_[param.spec.name] = &param;
  }
  const std::vector<WeightPart>& parts() const { return parts_; }

  /// World rank 0: the tensor in its Hugging Face shape, on the host.
  Tensor fetch(size_t index) {
    order(static_cast<int64_t>(index));
    const HfPart& part = parts_[index].part;
    const ParamSpec& spec = model_.whole()[parts_[index].param].spec;
    const Groups& groups = model_.groups();
    CutPlace place = cut_place(spec, groups);
    const int parts = place.parts * place.inner_parts;
    const Tensor out = at::empty(parts_[index].our_shape, model_.dtype());
    for (int part_of_all = 0; part_of_all < parts; ++part_of_all) {
      place.index = part_of_all / place.inner_parts;
      place.inner = part_of_all % place.inner_parts;
      const int speaker = speaker_of(spec, place);
      for (const Overlap& overlap : overlaps(spec, part, place, true)) {
        const Tensor to = part_view(out, overlap);
        if (speaker == groups.rank) {
          to.copy_(local_view(own_.at(spec.name)->value.detach(), part, overlap));
        } else if (to.is_contiguous()) {
          Tensor in_place = to;
          groups.control->recv(in_place, speaker);
        } else {
          Tensor piece = at::empty(to.sizes(), to.options());
          groups.control->recv(piece, speaker);
          to.copy_(piece);
        }
      }
    }
    return parts_[index].as_theirs(out);
  }
  /// World rank 0: lets the others go.
  void release() { order(kDone); }
  /// The other ranks: sends what world rank 0 asks for, until it lets them go.
  void serve() {
    const Groups& groups = model_.groups();
    for (int64_t index = order(0); index != kDone; index = order(0)) {
      const HfPart& part = parts_[index].part;
      const ParamSpec& spec = model_.whole()[parts_[index].param].spec;
      const CutPlace place = cut_place(spec, groups);
      if (speaker_of(spec, place) != groups.rank) continue;
      const Tensor value = own_.at(spec.name)->value.detach();
      for (const Overlap& overlap : overlaps(spec, part, place, true))
        groups.control->send(local_view(value, part, overlap).cpu().contiguous(), 0);
    }
  }

 private:
  static constexpr int64_t kDone = -1;
  /// World rank that sends what stands at this place of a weight.
  int speaker_of(const ParamSpec& spec, const CutPlace& place) const {
    const Mesh& mesh = model_.groups().mesh;
    const int stage = place_of(model_.pipeline(), model_.piece_of_weight(spec.name)).rank;
    if (&cut_group(spec, model_.groups()) != model_.groups().ep.get()) return mesh.rank_at(stage, 0, 0, place.index);
    return mesh.rank_at(stage, 0, 0, 0) + place.index * mesh.shape().etp + place.inner;  // etp, then ep run fastest
  }
  int64_t order(int64_t index) {
    Tensor word = at::scalar_tensor(index, at::kLong);
    model_.groups().control->broadcast(word, 0);
    return word.item<int64_t>();
  }
  const Vlm& model_;
  std::vector<WeightPart> parts_;            // of the whole model
  std::map<std::string, const Param*> own_;  // of this rank's stage
};

/// A tensor of the folder: one of the model's, or one of the source folder that the model does not know.
struct Output {
  TensorPlan plan;
  std::optional<size_t> part;
};

std::vector<Output> plan_outputs(const Vlm& model,
                                 const std::vector<WeightPart>& parts,
                                 const WeightFolder* source,
                                 std::optional<at::ScalarType> wanted) {
  std::vector<Output> out;
  std::set<std::string> planned;
  const auto add = [&](const std::string& name, size_t index) {
    const bool is_there = source != nullptr && source->contains(name);
    const at::ScalarType dtype = wanted.value_or(is_there ? source->entry(name).dtype : model.dtype());
    out.push_back({{name, dtype, parts[index].part.shape}, index});
    planned.insert(name);
  };
  const TiedName tied = tied_name(model.whole(), model.config());
  // The model's own tensors in another layout than the one that is written.
  for (const std::string_view layout : kExpertLayouts) {
    ModelConfig other = model.config();
    other.experts_on_disk = layout;
    if (!other.decoder.is_moe()) break;
    for (const WeightPart& part : weight_parts(model.whole(), other)) planned.insert(part.part.name);
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    add(parts[i].part.name, i);
    if (source != nullptr && parts[i].part.name == tied.original && source->contains(tied.copy)) add(tied.copy, i);
  }
  if (source == nullptr) return out;
  for (const std::string& name : source->names())
    if (!planned.contains(name)) out.push_back({{name, source->entry(name).dtype, source->entry(name).shape}, {}});
  return out;
}

using Shard = std::vector<const Output*>;

/// Fills shards in order; a tensor above the limit gets one of its own.
/// source: huggingface_hub split_state_dict_into_shards_factory
std::vector<Shard> split(const std::vector<Output>& outputs, int64_t max_bytes) {
  std::vector<Shard> shards;
  Shard current;
  int64_t current_bytes = 0;
  for (const Output& output : outputs) {
    const int64_t bytes = size_bytes(output.plan.dtype, output.plan.shape);
    if (bytes > max_bytes) {
      shards.push_back({&output});
      continue;
    }
    if (current_bytes + bytes > max_bytes) {
      shards.push_back(std::move(current));
      current.clear();
      current_bytes = 0;
    }
    current.push_back(&output);
    current_bytes += bytes;
  }
  if (!current.empty()) shards.push_back(std::move(current));
  return shards;
}

std::string shard_name(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  char text[64];
  std::snprintf(text, sizeof text, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return text;
}

constexpr std::string_view kIndexName = "model.safetensors.index.json";

bool is_weight_file(const std::string& name) {
  static const std::regex shard(R"(model(-\d{5,}-of-\d{5,})?\.safetensors)");
  return std::regex_match(name, shard);
}

std::string without_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

/// "notes.txt": something in `folder` that an export does not write; empty if there is none.
std::string stranger_in(const std::string& folder, const ExportOptions& options) {
  std::error_code error;
  bool has_weights = false, has_config = false, is_empty = true;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code ignored;
    if (it->symlink_status(ignored).type() != fs::file_type::regular) return name;
    const bool is_weights = is_weight_file(name);
    if (!is_weights && name != kIndexName && !is_written_side_file(name, options)) return name;
    has_weights |= is_weights;
    has_config |= name == "config.json";
    is_empty = false;
  }
  require_success(error, "list folder", folder);
  if (is_empty || (has_weights && has_config)) return "";
  return has_weights ? "weights without config.json" : "settings without weights";
}

/// FOLDER.tmp, in which an export makes its folder. It is known for an export's by a file in it, which is the first
/// thing to come and the last to go: what a killed export left is cleared away, and what is somebody else's is not.
class Staging {
 public:
  static std::string path_beside(const std::string& folder) { return folder + ".tmp"; }
  /// errors: kIo if it is somebody else's, or another export is under way in it
  static void require_free(const std::string& path) {
    std::error_code error;
    const fs::file_type type = fs::symlink_status(path, error).type();
    if (type == fs::file_type::not_found) return;
    const bool is_ours = type == fs::file_type::directory && (is_marked(path) || fs::is_empty(path, error));
    HANOK_REQUIRE(is_ours, kIo) << "export: got something at the place of its unfinished folder that no export left, "
                                << "expected nothing there; " << path << "; rename it, or choose another path";
    require_no_other(path, is_unlocked(mark_of(path)));
  }

  explicit Staging(const std::string& path) : path_(path) {
    require_free(path);
    lock_ = FileLock::of_removed_file(mark_of(path));
    require_no_other(path, lock_ != nullptr);
    std::ofstream(mark_of(path)) << "an unfinished export; trainer removes it when it exports here again\n";
    try {
      clear();
      std::error_code error;
      fs::create_directory(folder(), error);
      require_success(error, "create folder", folder());
    } catch (const Error&) {
      remove();
      throw;
    }
  }
  ~Staging() { remove(); }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  std::string folder() const { return path_ + "/model"; }

 private:
  static constexpr const char* kMark = ".hanok_export";
  static std::string mark_of(const std::string& path) { return concat(path, "/", kMark); }
  static bool is_marked(const std::string& path) {
    std::error_code error;
    return fs::is_regular_file(fs::symlink_status(mark_of(path), error));
  }
  static void require_no_other(const std::string& path, bool is_free) {
    HANOK_REQUIRE(is_free, kIo) << "export: got another export under way to the same folder, expected none; " << path
                                << "; wait for it, or choose another path";
  }
  /// All but the mark.
  void clear() const {
    std::error_code error;
    for (fs::directory_iterator it(path_, error), end; !error && it != end; it.increment(error)) {
      std::error_code failed;
      if (it->path().filename() != kMark) fs::remove_all(it->path(), failed);
      require_success(failed, "remove", it->path().string());
    }
    require_success(error, "list folder", path_);
  }
  void remove() const {
    try {
      clear();
      std::error_code error;
      fs::remove(mark_of(path_), error);
      require_success(error, "remove", mark_of(path_));
      fs::remove(path_, error);     // stays where another export has made its mark by now
    } catch (const Error& error) {  // the next export clears it
      HANOK_LOG(WARNING) << error.what();
    }
  }

  std::string path_;
  std::unique_ptr<FileLock> lock_;  // of the mark
};

/// The work of world rank 0.
class Writer {
 public:
  Writer(const Vlm& model, const std::string& folder, const ExportOptions& options, Gatherer& gatherer)
      : model_(model), folder_(folder), options_(options), gatherer_(gatherer) {
    if (!options.source_folder.empty()) source_.emplace(options.source_folder);
    outputs_ = plan_outputs(model, gatherer.parts(), source_ ? &*source_ : nullptr, options.dtype);
  }
  void run() {
    require_export_target(folder_, options_);
    const Staging staging(Staging::path_beside(folder_));
    temporary_ = staging.folder();
    say_what_is_rounded();
    write_weights();
    write_side_files(temporary_, model_.config(), options_.dtype.value_or(model_.dtype()), options_);
    sync_path(temporary_);
    compare();
    replace();
  }

 private:
  Tensor value(const Output& output) {
    if (!output.part) return source_->view(output.plan.name);
    const Tensor own = gatherer_.fetch(*output.part), written = own.to(output.plan.dtype);
    HANOK_REQUIRE(written.scalar_type() != at::kHalf || at::equal(written.isinf(), own.isinf()), kConfig)
        << "save.export_dtype: got float16 for " << output.plan.name << ", expected a dtype that its values fit into, "
        << "the largest is " << own.abs().max().item<double>() << "; set bfloat16 or float32";
    return written;
  }
  void say_what_is_rounded() const;
  void write_weights();
  void compare();
  void replace();

  const Vlm& model_;
  std::string folder_, temporary_;
  const ExportOptions& options_;
  Gatherer& gatherer_;
  std::optional<WeightFolder> source_;
  std::vector<Output> outputs_;
};

void Writer::say_what_is_rounded() const {
  const size_t own = c10::elementSize(model_.dtype());
  const auto is_rounded = [&](const Output& o) { return o.part && c10::elementSize(o.plan.dtype) < own; };
  const int64_t count = std::count_if(outputs_.begin(), outputs_.end(), is_rounded);
  if (count == 0) return;
  const std::string why = options_.dtype
                              ? "save.export_dtype asks for"
                              : "they have in " + options_.source_folder + " (save.export_dtype sets another)";
  HANOK_LOG(INFO) << "export: " << count << " of " << outputs_.size() << " weights are rounded to the dtype that "
                  << why << "; here they are " << at::toString(model_.dtype());
}

void Writer::write_weights() {
  const std::vector<Shard> shards = split(outputs_, options_.max_shard_bytes);
  Progress progress("writing weights", static_cast<int64_t>(outputs_.size()), "tensors");
  int64_t written = 0, total_bytes = 0, total_elements = 0;
  nlohmann::json weight_map = nlohmann::json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    Shard shard = shards[i];
    std::stable_sort(shard.begin(), shard.end(), [](const Output* a, const Output* b) {
      return c10::elementSize(a->plan.dtype) > c10::elementSize(b->plan.dtype);
    });
    std::vector<TensorPlan> plans;
    std::map<std::string, const Output*> by_name;
    const std::string file = shard_name(i, shards.size());
    for (const Output* output : shard) {
      plans.push_back(output->plan);
      by_name[output->plan.name] = output;
      weight_map[output->plan.name] = file;
      const int64_t bytes = size_bytes(output->plan.dtype, output->plan.shape);
      total_bytes += bytes;
      total_elements += bytes / static_cast<int64_t>(c10::elementSize(output->plan.dtype));
    }
    write_safetensors(temporary_ + "/" + file, plans, {{"format", "pt"}}, [&](const std::string& name) {
      progress.update(++written);
      return value(*by_name.at(name));
    });
  }
  if (shards.size() == 1) return;
  const nlohmann::json index = {{"metadata", {{"total_parameters", total_elements}, {"total_size", total_bytes}}},
                                {"weight_map", weight_map}};
  write_file_atomically(concat(temporary_, "/", kIndexName), index.dump(2) + "\n");
}

void Writer::compare() {
  const WeightFolder written(temporary_);
  Progress progress("comparing weights", static_cast<int64_t>(outputs_.size()), "tensors");
  int64_t compared = 0;
  for (const Output& output : outputs_) {
    const Tensor expected = value(output).contiguous();
    const bool is_same = expected.scalar_type() == output.plan.dtype &&
                         expected.sizes() == at::IntArrayRef(output.plan.shape) &&
                         written.equals(output.plan.name, expected);
    HANOK_REQUIRE(is_same, kCheckpoint) << "export: got other bytes back than were written for " << output.plan.name
                                        << ", expected the same; " << temporary_ << "; check the disk and try again";
    progress.update(++compared);
  }
}

void Writer::replace() {
  rename_over(temporary_, folder_);
  const std::string parent = fs::path(folder_).parent_path().string();
  sync_path(parent.empty() ? "." : parent);
}

}  // namespace

void require_export_target(const std::string& folder, const ExportOptions& options) {
  const std::string path = without_slashes(folder);
  std::error_code error;
  for (const auto& [key, source] : {std::pair<const char*, const std::string&>{"model.path", options.source_folder},
                                    {"model.tokenizer", options.tokenizer_folder}})
    HANOK_REQUIRE(source.empty() || !fs::equivalent(path, source, error), kConfig)
        << "export: got the folder of " << key << " as its target, expected another one, so that the original stays; "
        << path << "; choose another path";
  if (fs::exists(path, error)) {
    HANOK_REQUIRE(fs::is_directory(path, error), kIo)
        << "export: got a file as its target, expected a model folder or none; " << path << "; choose another path";
    const std::string stranger = stranger_in(path, options);
    HANOK_REQUIRE(stranger.empty(), kIo) << "export: got a folder that holds something else (" << stranger
                                         << "), expected a model folder or none; " << path
                                         << "; choose another path, or move it away";
  }
  Staging::require_free(Staging::path_beside(path));
}

void export_model(const Vlm& model, const std::string& folder, const ExportOptions& options) {
  const at::NoGradGuard no_grad;
  const std::string path = without_slashes(folder);
  const ModelConfig config = written_config(model, options);
  if (!transformers_finds_experts(config)) {
    HANOK_LOG_RANK0(WARNING) << "export: got experts_on_disk " << config.experts_on_disk << " for "
                             << config.known_family()
                             << ", in which transformers 5 does not find the experts (it fills "
                             << "them at random); key model.experts_on_disk; set auto or fused_out_in";
  }
  Gatherer gatherer(model, config);
  std::optional<Error> failure;
  if (model.groups().rank != 0) {
    gatherer.serve();
  } else {
    try {
      Writer(model, path, options, gatherer).run();
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kComm) throw;  // nobody answers any more
      failure = error;
    }
    gatherer.release();
  }
  if (const auto first = first_failure(failure, *model.groups().control)) throw *first;
  HANOK_LOG_RANK0(INFO) << "model folder " << path << " is written and compared";
}

}  // namespace hanok
