// Driven by tests/oracle/optimizer.py: runs AdamW with clipping on given gradients and writes the values after each
// step. usage: optimizer_probe FOLDER   (problem.json, values.bin, grads.bin -> result.bin), all numbers little-endian
// f32
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "configs/schema/config.h"
#include "dataio/file_io.h"
#include "trainer/clip.h"
#include "trainer/optimizer.h"

namespace hanok {
namespace {

using nlohmann::json;

OptimizerConfig config_of(const json& j) {
  OptimizerConfig config;
  config.beta1 = j["beta1"];
  config.beta2 = j["beta2"];
  config.eps = j["eps"];
  config.weight_decay = j["weight_decay"];
  config.clip_norm = j["clip_norm"];
  config.no_decay = j["no_decay"].get<std::vector<std::string>>();
  for (const json& g : j["groups"]) config.groups.push_back({g["match"], g["lr_scale"], g["weight_decay"]});
  return config;
}

Tensor floats(const std::string& path) {
  const std::string bytes = read_file(path);
  return at::from_blob(const_cast<char*>(bytes.data()), {static_cast<int64_t>(bytes.size() / 4)}, at::kFloat).clone();
}

void run(const std::string& folder) {
  const json problem = json::parse(read_file(folder + "/problem.json"));
  const OptimizerConfig config = config_of(problem["optimizer"]);
  const Tensor values = floats(folder + "/values.bin"), grads = floats(folder + "/grads.bin");

  ParamTable params;
  int64_t total = 0;
  for (const json& p : problem["params"]) {
    Param param;
    param.spec.name = p["name"];
    param.spec.shape = p["shape"].get<std::vector<int64_t>>();
    int64_t size = 1;
    for (const int64_t s : param.spec.shape) size *= s;
    param.value = values.narrow(0, total, size).view(param.spec.shape).clone();
    param.trainable = p["trainable"];
    param.value.set_requires_grad(param.trainable);
    params.push_back(param);
    total += size;
  }
  const Groups groups = make_single_groups();
  GradSync sync(params, groups, at::kFloat);
  AdamW optimizer(config, params, sync);

  std::ofstream out(folder + "/result.bin", std::ios::binary);
  const auto& rates = problem["lr"];
  for (size_t step = 0; step < rates.size(); ++step) {
    sync.start();
    int64_t begin = static_cast<int64_t>(step) * total;
    Tensor loss = at::zeros({}).requires_grad_(true);
    const bool has_pictures = problem["pictures"][step];
    for (Param& param : params) {
      const int64_t size = param.value.numel();
      const bool is_reached = has_pictures || reach_of(param.spec.name) == kAlways;
      if (param.trainable && is_reached)
        loss = loss + (param.value * grads.narrow(0, begin, size).view(param.spec.shape)).sum();
      begin += size;
    }
    loss.backward();
    sync.finish();
    const Clip clip = clip_by_norm(sync, config.clip_norm);
    optimizer.step(
        clip.scale, clip.norm.isfinite().logical_and(at::tensor({1, has_pictures ? 1 : 0}, at::kInt)), rates[step]);
    for (const Param& param : params)
      out.write(static_cast<const char*>(param.value.const_data_ptr()), 4 * param.value.numel());
  }
  const AppliedSteps steps = optimizer.num_steps();
  std::printf("%lld %lld\n", static_cast<long long>(steps.all), static_cast<long long>(steps.with_pictures));
}

}  // namespace
}  // namespace hanok

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    hanok::run(argv[1]);
    return 0;
  } catch (const hanok::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
