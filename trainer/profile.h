// Where the time of one step goes.
#pragma once

#include <memory>
#include <string>

namespace hanok {

/// Records operations and GPU kernels from construction to destruction, and then writes them to `path` in Chrome's trace
/// format, which ui.perfetto.dev opens. Empty `path`: does nothing. One at a time in a process. A trace that cannot be
/// written is a WARNING: it is not worth a run.
class StepProfile {
 public:
  explicit StepProfile(const std::string& path);
  ~StepProfile();
  StepProfile(const StepProfile&) = delete;
  StepProfile& operator=(const StepProfile&) = delete;

 private:
  std::string path_;
};

}  // namespace hanok
