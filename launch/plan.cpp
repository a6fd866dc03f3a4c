#include <iostream>
#include <regex>

#include "base/error.h"
#include "configs/schema/check.h"
#include "configs/schema/read.h"
#include "launch/bootstrap.h"
#include "launch/choose_layout.h"
#include "launch/choose_report.h"
#include "launch/command.h"
#include "launch/device.h"
#include "launch/installed.h"
#include "launch/plan_report.h"
#include "trainer/weights.h"

namespace hanok {
namespace {

/// "tp2,dp4" -> layout; axes that are not named have size 1.
ParallelConfig parse_mesh(const std::string& text, ParallelConfig layout) {
  layout.tp = layout.pp = layout.cp = layout.ep = layout.etp = layout.dp = 1;
  static const std::regex axis("([a-z]+)([0-9]{1,5})");
  const std::pair<const char*, int64_t*> axes[] = {{"tp", &layout.tp},
                                                   {"dp", &layout.dp},
                                                   {"pp", &layout.pp},
                                                   {"cp", &layout.cp},
                                                   {"ep", &layout.ep},
                                                   {"etp", &layout.etp}};
  std::string seen;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    std::smatch match;
    const bool is_axis = std::regex_match(word, match, axis);
    int64_t* size = nullptr;
    for (const auto& [name, member] : axes)
      if (is_axis && match[1] == name) size = member;
    HANOK_REQUIRE(size != nullptr && std::stoll(match[2]) > 0, kConfig)
        << "--mesh: got \"" << word << "\" in " << text
        << ", expected axes of tp, dp, pp, cp, ep, etp with a size above 0; "
        << "for example tp2,dp4";
    HANOK_REQUIRE(seen.find(concat(match[1].str(), ",")) == std::string::npos, kConfig)
        << "--mesh: got " << match[1].str() << " twice in " << text << ", expected every axis once; leave one out";
    seen += match[1].str() + ",";
    *size = std::stoll(match[2]);
    begin = end + 1;
  }
  return layout;
}

Supposed supposed_of(const RunConfig& config, const Arguments& arguments) {
  Supposed supposed = supposed_by_default(config);
  if (config.model.tower.type == "none") return supposed;
  const int64_t merge = config.model.connector.merge * config.model.connector.merge;
  if (arguments.pictures >= 0) supposed.picture_share = arguments.pictures;
  if (arguments.patches > 0) supposed.patches_per_picture = arguments.patches;
  HANOK_REQUIRE(supposed.patches_per_picture % merge == 0, kConfig)
      << "--patches: got " << supposed.patches_per_picture << ", expected a multiple of merge^2 = " << merge;
  return supposed;
}

/// What --gpu names; without it the GPU of this machine, if its kind is known.
std::vector<const GpuConfig*> wanted_gpus(const std::string& name, const std::vector<GpuConfig>& gpus) {
  std::vector<const GpuConfig*> out;
  if (name == "all") {
    for (const GpuConfig& gpu : gpus) out.push_back(&gpu);
  } else if (!name.empty()) {
    out.push_back(&find_gpu(gpus, name));
  } else if (const auto here = visible_gpus(); !here.empty()) {
    const double gib = static_cast<double>(here.front().memory_bytes) / (1 << 30);
    if (const GpuConfig* gpu = match_gpu(gpus, here.front().name, gib)) out.push_back(gpu);
  }
  return out;
}

StagePlan plan_stage(const RunConfig& config,
                     const StageConfig& given,
                     const Supposed& supposed,
                     const std::vector<const GpuConfig*>& wanted) {
  const GpuConfig* first = wanted.empty() ? nullptr : wanted.front();
  StagePlan plan{.stage = with_balanced_pipeline(config, given, supposed, first), .supposed = supposed};
  const StageConfig& stage = plan.stage;
  plan.planned = plan_model(config, stage, stage.parallel, first);
  plan.estimate = estimate(config, stage, plan.planned, supposed, first);
  for (const GpuConfig* gpu : wanted) {
    GpuVerdict verdict{.gpu = gpu, .estimate = plan.estimate};
    if (gpu != first)
      verdict.estimate = estimate(config, stage, plan_model(config, stage, stage.parallel, gpu), supposed, gpu);
    if (wanted.size() == 1 && !fits(verdict.estimate, *gpu))
      verdict.suggestions = suggest(config, stage, stage.parallel, supposed, *gpu);
    plan.verdicts.push_back(std::move(verdict));
  }
  return plan;
}

/// The config with --mesh in every stage, its rules checked on that many ranks.
RunConfig config_of(const Arguments& arguments) {
  if (arguments.mesh.empty()) return load_run_config(arguments, 0);
  HANOK_REQUIRE(!arguments.config.empty(), kConfig)
      << "--config: got none, expected a YAML file; examples are in configs/run/";
  RunConfig config = read_config(arguments.config, arguments.sets);
  const ParallelConfig mesh = parse_mesh(arguments.mesh, config.parallel);
  config.parallel = mesh;
  for (StageConfig& stage : config.stages) stage.parallel = parse_mesh(arguments.mesh, stage.parallel);
  check_config(config, static_cast<int>(mesh.tp * mesh.dp * mesh.pp * mesh.cp));
  return config;
}

int suggest_layouts(const RunConfig& config,
                    const Arguments& arguments,
                    const Supposed& supposed,
                    const std::vector<const GpuConfig*>& wanted) {
  HANOK_REQUIRE(wanted.size() == 1, kConfig)
      << "--suggest: got " << (wanted.empty() ? "no kind of GPU" : "several kinds of GPU")
      << ", expected one; add --gpu h200, or another name of configs/gpu";
  std::vector<StageChoices> stages;
  for (const StageConfig& stage : config.stages)
    stages.push_back(
        {&stage, choose_layouts(config, stage, static_cast<int>(arguments.suggest), supposed, *wanted.front())});
  if (arguments.json) {
    std::cout << to_json(config, stages) << "\n";
  } else {
    for (const StageChoices& choices : stages)
      print_text(choices, config, static_cast<int>(arguments.suggest), supposed, *wanted.front());
  }
  return 0;
}

}  // namespace

int plan(const Arguments& arguments) {
  RunConfig config = config_of(arguments);
  if (!config.model.path.empty()) read_model_folder(config.model);
  if (world_rank() != 0) return 0;
  for (const StageConfig& stage : config.stages) check_model(config.model, stage.parallel);
  const std::vector<GpuConfig> gpus = known_gpus();
  const bool on_cpu = arguments.gpu.empty() && config.device == "cpu";
  const std::vector<const GpuConfig*> wanted =
      on_cpu ? std::vector<const GpuConfig*>{} : wanted_gpus(arguments.gpu, gpus);
  const Supposed supposed = supposed_of(config, arguments);
  if (arguments.suggest > 0) return suggest_layouts(config, arguments, supposed, wanted);
  std::vector<StagePlan> plans;
  for (const StageConfig& stage : config.stages) plans.push_back(plan_stage(config, stage, supposed, wanted));
  if (arguments.json) {
    std::cout << to_json(config, plans) << "\n";
    return 0;
  }
  std::cout << echo(config);
  for (const StagePlan& stage : plans) print_text(stage);
  if (wanted.empty())
    std::cout << "\nno GPU named and none of a known kind here: counted for a CPU; --gpu h200 asks whether it fits, "
                 "--gpu all compares all kinds\n";
  return 0;
}

}  // namespace hanok
