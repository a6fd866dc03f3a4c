// What a run remembers between steps, beyond tensors.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "dataio/sampler.h"

namespace hanok {

struct TrainState {
  int stage = 0;                // index into config.stages
  int64_t step = 0;             // optimizer steps done in this stage
  int64_t num_steps = 0;        // of this stage; fixed when it starts
  Cursor cursor;                // where the next step's data begins
  int64_t optimizer_steps = 0;  // applied ones (skipped ones do not count)
  int64_t picture_steps = 0;    // those of them that had pictures
  double tokens = 0;            // seen in this stage, over all ranks
  int64_t skipped_steps = 0;    // non-finite, in this stage
  int64_t skipped_in_a_row = 0;
  double best_metric = std::numeric_limits<double>::quiet_NaN();
  int64_t best_step = -1;
  int64_t evals_without_gain = 0;
  int64_t evaluated_step = -1;  // newest step that was judged on held-out data
  std::string data_key;         // content of the stage's datasets; a resumed run must see the same

  /// What a checkpoint keeps: written and read by one list.
  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("stage", self.stage);
    v("step", self.step);
    v("num_steps", self.num_steps);
    v("cursor_step", self.cursor.step);
    v("cursor_window", self.cursor.window);
    v("cursor_row", self.cursor.row);
    v("optimizer_steps", self.optimizer_steps);
    v("picture_steps", self.picture_steps);
    v("tokens", self.tokens);
    v("skipped_steps", self.skipped_steps);
    v("skipped_in_a_row", self.skipped_in_a_row);
    v("best_metric", self.best_metric);
    v("best_step", self.best_step);
    v("evals_without_gain", self.evals_without_gain);
    v("evaluated_step", self.evaluated_step);
    v("data_key", self.data_key);
  }
};

}  // namespace hanok
