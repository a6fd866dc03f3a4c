#include "trainer/profile.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <filesystem>

#include "base/log.h"

namespace hanok {
namespace profiler = torch::autograd::profiler;

StepProfile::StepProfile(const std::string& path) : path_(path) {
  if (path_.empty()) return;
  std::set<torch::profiler::impl::ActivityType> activities{torch::profiler::impl::ActivityType::CPU};
  if (at::hasCUDA()) activities.insert(torch::profiler::impl::ActivityType::CUDA);
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
}

StepProfile::~StepProfile() {
  if (path_.empty()) return;
  const std::unique_ptr<profiler::ProfilerResult> result = profiler::disableProfiler();
  result->save(path_);
  if (std::filesystem::exists(path_)) {
    HANOK_LOG(INFO) << "trace of the step: " << path_ << " (ui.perfetto.dev opens it)";
  } else {
    HANOK_LOG(WARNING) << "trace: got nothing at " << path_ << ", expected a file; the run goes on without it";
  }
}

}  // namespace hanok
