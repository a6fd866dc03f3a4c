#include "launch/predict.h"

#include "base/error.h"
#include "base/log.h"
#include "configs/schema/check.h"
#include "configs/schema/gpu.h"
#include "launch/device.h"
#include "launch/estimate.h"
#include "launch/installed.h"

namespace hanok {
namespace {

std::optional<GpuConfig> kind_of(at::Device device) {
  if (device.is_cpu()) return std::nullopt;
  const DeviceInfo here = visible_gpus().at(device.index());
  const std::vector<GpuConfig> known = known_gpus();
  const GpuConfig* kind = match_gpu(known, here.name, static_cast<double>(here.memory_bytes) / (1 << 30));
  return kind ? std::optional(*kind) : std::nullopt;
}

/// What `found` gives; nothing where it fails: a comparison is not worth a run.
template <class T>
std::optional<T> or_nothing(const std::function<std::optional<T>()>& found) {
  try {
    return found();
  } catch (const Error& error) {
    HANOK_LOG_RANK0(WARNING) << "no plan to compare the stage with: " << error.what();
    return std::nullopt;
  }
}

Prediction predict(const RunConfig& config,
                   const ModelConfig& model,
                   const StageConfig& stage,
                   const Work& work,
                   const GpuConfig& gpu,
                   int world) {
  RunConfig resolved = config;
  resolved.model = model;
  StageConfig placed = stage;
  placed.parallel.dp = data_parallel_size(stage.parallel, world);
  const PlannedModel planned = plan_model(resolved, placed, placed.parallel, &gpu);
  const Estimate e = estimate(resolved, placed, planned, supposed_of(resolved, placed, work), &gpu);
  constexpr double kGiB = 1 << 30;
  Prediction out{.step_s = e.seconds->total()};
  for (const Estimate::Stage& on : e.stages) out.peak_gib.push_back((on.peak - e.allowance_bytes) / kGiB);
  return out;
}

}  // namespace

Predict predictor(const RunConfig& config, at::Device device, int world) {
  const auto gpu = or_nothing<GpuConfig>([&] { return kind_of(device); });
  if (!gpu) return {};
  return [config, gpu, world](const ModelConfig& model, const StageConfig& stage, const Work& work) {
    return or_nothing<Prediction>([&] { return std::optional(predict(config, model, stage, work, *gpu, world)); });
  };
}

}  // namespace hanok
