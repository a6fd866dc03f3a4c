// The folder of a run: who owns it, and where things lie in it.
//   config.yaml                        resolved config of the newest start
//   report.html loss.svg               for people; metrics.jsonl, events.out.tfevents.* the same for machines
//   evaluation.json                    the newest one
//   checkpoints/STAGE/step_00000100/   a TensorStore
//   checkpoints/STAGE/best             name of the best one of the stage
//   checkpoints/STAGE/step_*.aside     of a course that was left: damaged, or newer than where a run went on
//   model/                             exported Hugging Face folder
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "configs/schema/config.h"

namespace hanok {

struct CheckpointPath {
  int stage = 0;
  int64_t step = 0;
  std::string directory;
};

/// Names in the order of the stages, as RunFolder wants them.
std::vector<std::string> stage_names(const RunConfig& config);

class RunFolder {
 public:
  explicit RunFolder(std::string path) : path_(std::move(path)) {}
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string checkpoint(const std::string& stage_name, int64_t step) const;
  /// Complete checkpoints (those with a manifest), newest first: later stages, then later steps.
  std::vector<CheckpointPath> checkpoints(const std::vector<std::string>& stage_names) const;
  /// Stages with complete checkpoints that are not among `stage_names`.
  std::vector<std::string> strange_stages(const std::vector<std::string>& stage_names) const;
  /// Name of the best checkpoint of a stage ("step_00000100"); empty if none was marked, or it is gone.
  std::string best(const std::string& stage_name) const;
  std::string best_directory(const std::string& stage_name) const;  // its path
  /// A step below 0 takes the mark away. errors: kIo
  void set_best(const std::string& stage_name, int64_t step) const;
  /// Removes all complete checkpoints but the newest `keep` and the best one of every stage; one that cannot be removed
  /// is left with a WARNING. Called by one rank.
  void prune(const std::vector<std::string>& stage_names, int64_t keep) const;
  /// Renames the checkpoints from (stage, step) on to NAME.aside (.aside.2, ...): a run goes on from an earlier point,
  /// and they must not count as the newest again. (0, 0) sets all aside. Called by one rank. errors: kIo
  void set_aside_from(const std::vector<std::string>& stage_names, int stage, int64_t step) const;
  /// Creates the folder and takes it (flock on LOCK, whose text names the owner: pid, host, job, start). Called by
  /// world rank 0. A lock left by a killed process is free. `job`: the scheduler's name of the run, if any. errors: kIo
  /// naming the owner if another process holds it; kIo if not writable
  void lock(const std::string& job = "");
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

 private:
  std::string path_;
  int lock_fd_ = -1;
};

}  // namespace hanok
