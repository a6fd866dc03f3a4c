// One JSON line a step for machines (metrics.jsonl), one readable line for people, and the loss picture.
#pragma once

#include <memory>
#include <string>

namespace hanok {

/// Fields of a line of metrics.jsonl, documented in trainer/README.md.
struct StepMetrics {
  std::string stage;
  int64_t step = 0, num_steps = 0;  // `step` steps are done, this one included
  double tokens = 0;                // real tokens of this step, over all ranks
  double label_tokens = 0;
  double loss = 0, grad_norm = 0, lr = 0;
  double step_s = 0, data_wait_s = 0, checkpoint_stall_s = 0;
  double tokens_per_s = 0, model_flops_per_s = 0;  // over all ranks
  double memory_gib = 0;                           // largest peak of a rank: device memory, or resident host memory
  double fill = 0;                                 // real tokens / row capacity
  bool applied = true;                             // false: skipped as non-finite
};

/// "sft 12/100  loss 2.3456  norm 0.712  lr 1.00e-04  12.3k tok/s  4.56 TFLOP/s  wait 0%  1.20 GiB  eta 3:12"
std::string readable_line(const StepMetrics& step, double eta_s);

class Metrics {
 public:
  /// Writes only where `writes` (world rank 0). Lines of FOLDER/metrics.jsonl that lie beyond step `resume_step` of
  /// `resume_stage` (a crash lost their checkpoint), and a torn last line, are cut off.
  Metrics(
      const std::string& folder, const std::string& resume_stage, int64_t resume_step, bool writes, int64_t log_every);
  ~Metrics();
  void record(const StepMetrics& step);
  void record_evaluation(const std::string& stage, int64_t step, const std::string& json);
  void draw_loss() const;  // FOLDER/loss.svg of all lines

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hanok
