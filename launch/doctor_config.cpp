#include "launch/doctor_config.h"

#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <set>

#include "configs/schema/check.h"
#include "launch/bootstrap.h"
#include "launch/device.h"
#include "launch/doctor_facts.h"
#include "launch/estimate.h"
#include "launch/installed.h"
#include "launch/plan_report.h"
#include "trainer/data.h"
#include "trainer/weights.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;

/// Runs a check of the program itself: what it throws is what would be thrown.
void note(std::vector<Problem>& problems, const std::function<void()>& check) {
  try {
    check();
  } catch (const Error& error) {
    problems.push_back({error.kind(), error.what()});
  }
}

void check_devices(const RunConfig& config, int local_ranks, std::vector<Problem>& problems) {
  const std::vector<DeviceInfo> gpus = visible_gpus();
  if (config.device == "cuda" && gpus.empty())
    problems.push_back({ErrorKind::kDevice,
                        "device: got cuda, expected a visible GPU, found none; check the driver, or "
                        "set device: cpu"});
  if (config.device == "cpu" || gpus.empty()) return;
  if (local_ranks > static_cast<int>(gpus.size()))
    problems.push_back({ErrorKind::kDevice,
                        concat("device: got ",
                               local_ranks,
                               " ranks on this node, expected at most one for each of its ",
                               gpus.size(),
                               " visible GPUs; start fewer ranks, or set device: cpu")});
  for (const DeviceInfo& gpu : gpus) {
    if (gpu.major >= 8 || config.model.dtype != "bfloat16") continue;
    problems.push_back({ErrorKind::kDevice,
                        concat("model.dtype: got bfloat16, expected a dtype that ",
                               gpu.name,
                               " (capability ",
                               gpu.major,
                               ".",
                               gpu.minor,
                               ") has; set dtype: auto")});
    break;
  }
}

void check_model_files(RunConfig& config, std::vector<Problem>& problems) {
  const std::string& folder = config.model.path;
  if (!folder.empty()) {
    note(problems, [&] { read_model_folder(config.model); });
    std::error_code missing;
    bool has_weights = false;
    for (const auto& entry : fs::directory_iterator(folder, missing))
      has_weights |= entry.path().extension() == ".safetensors";
    if (!has_weights)
      problems.push_back({ErrorKind::kCheckpoint,
                          concat("model.path: got a folder without *.safetensors, expected weights; ", folder)});
  }
  for (const StageConfig& stage : config.stages) note(problems, [&] { check_model(config.model, stage.parallel); });
  const std::string& tokenizer = config.model.tokenizer.empty() ? folder : config.model.tokenizer;
  const auto has = [&](const char* file) { return fs::exists(fs::path(tokenizer) / file); };
  if (!has("tokenizer.json") && !(has("vocab.json") && has("merges.txt")))
    problems.push_back({ErrorKind::kData,
                        concat("tokenizer: got a folder with neither tokenizer.json nor vocab.json and merges.txt; ",
                               tokenizer,
                               "; set model.tokenizer")});
  note(problems, [&] { chat_template_of(config); });
}

void check_data(const RunConfig& config, std::vector<Problem>& problems) {
  std::set<std::string> used;
  note(problems, [&] { used = used_sets(config); });
  for (const std::string& name : used) {  // nobody reads the others
    const DatasetConfig& set = config.data.sets.at(name);
    if (::access(set.path.c_str(), R_OK) != 0)
      problems.push_back({ErrorKind::kData,
                          concat("data.sets.", name, ".path: got ", set.path, ", expected a file that can be read")});
    if (!set.image_root.empty() && !fs::is_directory(set.image_root))
      problems.push_back(
          {ErrorKind::kData, concat("data.sets.", name, ".image_root: got ", set.image_root, ", expected a folder")});
  }
}

/// The folder, or the first above it that exists.
std::string existing_folder(const std::string& folder) {
  fs::path path = fs::absolute(folder);
  while (!path.empty() && !fs::exists(path) && path.has_parent_path() && path != path.parent_path())
    path = path.parent_path();
  return path.string();
}

/// `out`: bytes of what it must hold at once.
void check_output(const RunConfig& config, double needed_bytes, std::vector<Problem>& problems) {
  bool can_write = true;
  for (const auto& [key, folder] :
       {std::pair<const char*, std::string>{"out", config.out}, {"data.cache", config.data.cache}}) {
    const std::string there = existing_folder(folder), fault = write_fault(there);
    if (fault.empty()) continue;
    problems.push_back(
        {ErrorKind::kIo,
         concat(key, ": got ", folder, ", expected a folder that can be written; ", there, ": ", fault)});
    can_write = false;
  }
  if (!can_write) return;
  const double free = free_gib(existing_folder(config.out)) * (1 << 30);
  if (needed_bytes > free)
    problems.push_back({ErrorKind::kIo,
                        concat("disk: got ",
                               human_bytes(free),
                               " free, expected ",
                               human_bytes(needed_bytes),
                               " for ",
                               config.save.keep,
                               " checkpoints, one in the making",
                               config.save.best ? ", the best one" : "",
                               config.save.export_model ? ", the model" : "",
                               "; ",
                               config.out,
                               "; free some space, lower save.keep, or set out")});
}

void require_host_memory(const Estimate& e, const StageConfig& stage, int local_ranks) {
  struct sysinfo machine = {};
  if (::sysinfo(&machine) != 0) return;
  const double there = static_cast<double>(machine.totalram) * machine.mem_unit;
  HANOK_REQUIRE(e.peak_bytes * local_ranks <= there, kDevice)
      << "host memory: got " << human_bytes(there) << ", expected " << human_bytes(e.peak_bytes) << " for each of "
      << local_ranks << " ranks on this machine; stage " << stage.name
      << "; take a smaller model, fewer rows_per_micro_batch, or a machine with GPUs";
}

/// Checkpoints that lie there at once, and the exported model, of the largest stage.
double output_bytes(const RunConfig& config, const std::vector<Estimate>& estimates) {
  double largest = 0, model = 0;
  for (const Estimate& e : estimates) {
    const double weights = e.parameters * static_cast<double>(c10::elementSize(e.dtype));
    largest = std::max(largest, weights + 12 * e.trainable);  // master and two moments in f32
    model = std::max(model, weights);
  }
  const double checkpoints = static_cast<double>(config.save.keep) + 1 + (config.save.best ? 1 : 0);
  return checkpoints * largest + (config.save.export_model ? model : 0);
}

}  // namespace

std::vector<Problem> config_problems(const Arguments& arguments, int world_size, int local_ranks) {
  std::vector<Problem> problems;
  RunConfig config;
  note(problems, [&] { config = load_run_config(arguments, world_size); });
  if (!problems.empty()) return problems;  // nothing that follows can be asked of it
  note(problems, [&] { require_config_apart(arguments, config); });
  check_devices(config, local_ranks, problems);
  const size_t before = problems.size();
  check_model_files(config, problems);
  const bool model_is_known = problems.size() == before;
  check_data(config, problems);
  if (!model_is_known) return problems;

  const std::vector<DeviceInfo> gpus = config.device == "cpu" ? std::vector<DeviceInfo>{} : visible_gpus();
  std::vector<GpuConfig> kinds;
  note(problems, [&] { kinds = known_gpus(); });
  const double gib = gpus.empty() ? 0 : static_cast<double>(gpus.front().memory_bytes) / (1 << 30);
  const GpuConfig* gpu = gpus.empty() ? nullptr : match_gpu(kinds, gpus.front().name, gib);
  std::vector<Estimate> estimates;
  for (const StageConfig& given : config.stages) {
    note(problems, [&] {
      const Supposed supposed = supposed_by_default(config);
      const StageConfig stage = with_balanced_pipeline(config, given, supposed, gpu);
      ParallelConfig layout = stage.parallel;
      layout.dp = data_parallel_size(layout, world_size);
      estimates.push_back(estimate(config, stage, plan_model(config, stage, layout, gpu), supposed, gpu));
      if (gpus.empty()) require_host_memory(estimates.back(), stage, local_ranks);
      if (gpu == nullptr || fits(estimates.back(), *gpu)) return;
      std::string sets;
      for (const Suggestion& s : suggest(config, stage, layout, supposed, *gpu))
        for (const std::string& set : s.sets) sets += (set == s.sets.front() ? "; --set " : " --set ") + set;
      HANOK_FAIL(kDevice) << "GPU memory: got " << gpu->memory_gib << " GiB, expected "
                          << human_bytes(estimates.back().peak_bytes) << " for stage " << stage.name << sets
                          << "; trainer plan tells what takes it";
    });
  }
  check_output(config, output_bytes(config, estimates), problems);
  return problems;
}

}  // namespace hanok
