// The folder of a run: who owns it, and where things lie in it.
//   config.yaml                        resolved config of the newest start
//   metrics.jsonl                      one line a step
//   checkpoints/STAGE/step_00000100/   a TensorStore
//   checkpoints/STAGE/best             name of the best one of the stage
//   model/                             exported Hugging Face folder
//   loss.svg, evaluation.json, skipped/*.txt, logs/
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace hanok {

struct CheckpointPath {
  int stage = 0;
  int64_t step = 0;
  std::string directory;
};

class RunFolder {
 public:
  explicit RunFolder(std::string path) : path_(std::move(path)) {}
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string checkpoint(const std::string& stage_name, int64_t step) const;
  /// Complete checkpoints (those with a manifest), newest first: later stages, then later steps.
  std::vector<CheckpointPath> checkpoints(const std::vector<std::string>& stage_names) const;
  /// Creates the folder and takes it (flock on LOCK, whose text names the owner: pid, host, job, start). Called by
  /// world rank 0. A lock left by a killed process is free. errors: kIo naming the owner if another process holds it;
  /// kIo if not writable
  void lock();
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

 private:
  std::string path_;
  int lock_fd_ = -1;
};

}  // namespace hanok
