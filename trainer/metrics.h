// One JSON line a step for machines (metrics.jsonl), the same for TensorBoard, and one readable line for people.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "trainer/history.h"
#include "trainer/prediction.h"

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
  double memory_gib = 0, memory_peak_gib = 0;      // largest of a rank: device memory, or resident host memory
  double fill = 0;                                 // real tokens / row capacity
  /// Of models with experts only.
  struct Experts {
    double aux_loss = 0;                     // balancing loss before its coefficient
    double tokens_mean = 0, tokens_max = 0;  // sent to an expert of a layer; the most to one of any layer
    double dropped = 0;                      // of tokens x experts per token
  };
  std::optional<Experts> experts;
  bool applied = true;  // false: skipped as non-finite
};

/// "sft 12/100  loss 2.3456  norm 0.712  lr 1.00e-04  12.3k tok/s  4.56 TFLOP/s  wait 0%  1.20/1.35 GiB  eta 3:12": the
/// most important first; what does not fit into `columns` (0: no limit) is left out. `eta_s` < 0: not said.
std::string readable_line(const StepMetrics& step, double eta_s, int columns);

/// Where a run goes on: what lies beyond was lost with the checkpoint that never came to be.
struct ResumePoint {
  std::string stage;
  int64_t step = 0;
  int64_t evaluated_step = -1;  // newest one that the resumed state knows to be judged
};

class Metrics {
 public:
  /// Writes only where `writes` (world rank 0). Lines of FOLDER/metrics.jsonl beyond `from`, and a torn last line, are
  /// cut off; FOLDER gets a TensorBoard event file that replaces the same steps there. `log_every`: steps between
  /// readable lines; on a terminal there is one for every step. errors: kIo if the files cannot be opened
  Metrics(const std::string& folder, const ResumePoint& from, bool writes, int64_t log_every);
  ~Metrics();
  void record(const StepMetrics& step);
  /// `json`: a summary of trainer/evaluate.h's to_json.
  void record_evaluation(const std::string& stage, int64_t step, const std::string& json);
  void record_comparison(const StageComparison& comparison);
  /// Everything in metrics.jsonl, earlier starts included; empty where nothing is written.
  const RunHistory& history() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hanok
