#include "launch/out_of_memory.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "configs/schema/read.h"
#include "launch/estimate.h"
#include "launch/installed.h"
#include "launch/plan_report.h"
#include "trainer/weights.h"

namespace hanok {
namespace {

constexpr double kGiB = 1 << 30;
constexpr double kOwnContext = 2 * kGiB;  // CUDA and NCCL of this process, which the plan reckons with

double outside_allocator(const RefusedAllocation& refused) {
  return std::max(0.0, refused.present - refused.free - refused.reserved);
}

/// The kind that this card is, or the one nearest in memory, with the room that this process can have.
GpuConfig gpu_like(const RefusedAllocation& refused, const std::string& name) {
  const std::vector<GpuConfig> gpus = known_gpus();
  const double gib = refused.present / kGiB;
  const auto nearest = std::min_element(gpus.begin(), gpus.end(), [&](const GpuConfig& a, const GpuConfig& b) {
    return std::abs(a.memory_gib - gib) < std::abs(b.memory_gib - gib);
  });
  const GpuConfig* known = match_gpu(gpus, name, gib);
  GpuConfig gpu = known ? *known : *nearest;
  const double others = std::max(0.0, outside_allocator(refused) - kOwnContext);
  gpu.memory_gib = std::min(refused.allowed, refused.present - others) / kGiB;
  return gpu;
}

}  // namespace

std::string out_of_memory_text(const RefusedAllocation& refused,
                               const std::vector<HeldBytes>& held,
                               const std::string& where,
                               const std::vector<std::string>& settings) {
  double known = 0;
  std::string kinds;
  const auto add = [&](const std::string& kind, double bytes) {
    if (bytes > 0) kinds += concat(kinds.empty() ? "" : ", ", kind, " ", human_bytes(bytes));
  };
  for (const HeldBytes& kind : held) {
    add(kind.kind, kind.bytes);
    known += kind.bytes;
  }
  add(held.empty() ? "tensors" : "activations and workspace", refused.allocated - known);
  add("held by the allocator but in pieces too small", refused.reserved - refused.allocated);
  add("CUDA, NCCL and other processes", outside_allocator(refused));
  std::string text = concat("GPU memory: got no room for another ",
                            human_bytes(refused.wanted),
                            ", expected it within the ",
                            human_bytes(refused.allowed),
                            " that this process may use; held: ",
                            kinds,
                            "; ",
                            where,
                            "; ");
  if (settings.empty())
    return text + "take more GPUs, a smaller model or shorter rows; trainer plan shows what each takes";
  text += "settings that fit by the plan: ";
  for (size_t i = 0; i < settings.size(); ++i) text += concat(i == 0 ? "" : " | ", settings[i]);
  return text;
}

std::vector<std::string> settings_that_fit(const RunConfig& config,
                                           const StageConfig& given,
                                           const RefusedAllocation& refused,
                                           const std::string& gpu_name,
                                           int world_size) {
  std::vector<std::string> out;
  try {
    RunConfig read = config;
    if (!read.model.path.empty()) read_model_folder(read.model);
    GpuConfig gpu = gpu_like(refused, gpu_name);
    const Supposed supposed = supposed_by_default(read);
    const StageConfig stage = with_balanced_pipeline(read, given, supposed, &gpu);
    ParallelConfig layout = stage.parallel;
    layout.dp = std::max<int64_t>(1, world_size / (layout.tp * layout.pp * layout.cp));
    const Estimate now = estimate(read, stage, plan_model(read, stage, layout, &gpu), supposed, &gpu);
    constexpr double kClearlyLess = 0.9;
    gpu.memory_gib = std::min(gpu.memory_gib, kClearlyLess * now.peak_bytes / kGiB);
    for (const Suggestion& suggestion : suggest(read, stage, layout, supposed, gpu)) {
      std::string way;
      for (const std::string& set : suggestion.sets) way += concat(way.empty() ? "--set " : " --set ", set);
      if (suggestion.world != world_size) way += concat(" on ", suggestion.world, " GPUs");
      out.push_back(way);
    }
  } catch (const Error&) {  // the refusal is what must be told
    out.clear();
  }
  return out;
}

ExplainRefusal explain_refusal(const RunConfig& config, at::Device device, int rank, int world_size) {
  return [=](const StageConfig& stage, const std::vector<HeldBytes>& held) {
    const RefusedAllocation refused = last_refused_allocation();
    const std::vector<DeviceInfo> gpus = visible_gpus();
    const auto index = static_cast<size_t>(std::max<int>(0, device.index()));
    const std::string name = index < gpus.size() ? gpus[index].name : "";
    return out_of_memory_text(refused,
                              held,
                              concat("rank ", rank, ", ", device.str(), ", stage ", stage.name),
                              settings_that_fit(config, stage, refused, name, world_size));
  };
}

}  // namespace hanok
