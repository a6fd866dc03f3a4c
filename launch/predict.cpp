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

/// What `found` gives; nothing where it fails: a plan is not worth a run.
template <class T>
std::optional<T> or_nothing(const std::function<std::optional<T>()>& found) {
  try {
    return found();
  } catch (const Error& error) {
    HANOK_LOG_RANK0(WARNING) << "no plan of the stage: " << error.what();
    return std::nullopt;
  }
}

/// A stage as it was read and placed.
struct Placed {
  RunConfig config;
  StageConfig stage;
  Placed(const RunConfig& given, const ModelConfig& model, const StageConfig& of, int world)
      : config(given), stage(of) {
    config.model = model;
    stage.parallel.dp = data_parallel_size(of.parallel, world);
  }
};

Prediction predict(const Placed& placed, const Work& work, const GpuConfig& gpu) {
  const auto& [config, stage] = placed;
  const PlannedModel planned = plan_model(config, stage, stage.parallel, &gpu);
  const Estimate e = estimate(config, stage, planned, supposed_of(config, stage, work), &gpu);
  constexpr double kGiB = 1 << 30;
  Prediction out{.step_s = e.seconds->total()};
  for (const Estimate::Stage& on : e.stages) out.peak_gib.push_back((on.peak - e.allowance_bytes) / kGiB);
  return out;
}

}  // namespace

Planner planner_of(const RunConfig& config, at::Device device, int world) {
  const auto gpu = or_nothing<GpuConfig>([&] { return kind_of(device); });
  if (!gpu) return {};
  Planner out;
  out.predict = [config, gpu, world](const ModelConfig& model, const StageConfig& stage, const Work& work) {
    return or_nothing<Prediction>(
        [&] { return std::optional(predict(Placed(config, model, stage, world), work, *gpu)); });
  };
  out.time_sublayers = [config, gpu, world](const ModelConfig& model, const StageConfig& stage, const Work& work) {
    return or_nothing<SublayerCosts>([&] {
      const Placed placed(config, model, stage, world);
      const Supposed supposed = supposed_of(placed.config, placed.stage, work);
      return std::optional(sublayer_seconds(placed.config, placed.stage, supposed, *gpu));
    });
  };
  return out;
}

}  // namespace hanok
