// usage: metrics_probe FOLDER STAGE RESUME_STEP LAST_STEP: what one start of a run leaves when it is killed after
// LAST_STEP: metrics.jsonl, a TensorBoard event file, report.html. An evaluation follows every fifth step.
#include <unistd.h>

#include <cmath>
#include <iostream>
#include <string>

#include "base/error.h"
#include "trainer/metrics.h"
#include "trainer/report.h"

int main(int argc, char** argv) {
  if (argc != 5) return 1;
  const std::string folder = argv[1], stage = argv[2];
  const int64_t resume = std::stoll(argv[3]), last = std::stoll(argv[4]);
  try {
    hanok::Metrics metrics(folder, {stage, resume, resume}, true, 1);
    hanok::RunConfig config;
    config.name = "probe <&> \"'";
    config.out = folder;
    config.stages = {{.name = "a"}, {.name = "b"}};
    hanok::Report report({.config = config, .device = "cpu", .versions = "trainer 1\n"}, true);
    for (int64_t step = resume + 1; step <= last; ++step) {
      const auto x = static_cast<double>(step);
      metrics.record({.stage = stage,
                      .step = step,
                      .num_steps = 20,
                      .tokens = 1000 + x,
                      .loss = step == 4 ? NAN : 5 / x,
                      .grad_norm = 0.1 * x,
                      .lr = 1e-3 / x,
                      .step_s = 0.5,
                      .tokens_per_s = 2000 + x,
                      .memory_gib = 1,
                      .memory_peak_gib = 2});
      if (step % 5 == 0)
        metrics.record_evaluation(stage, step, hanok::concat("{\"loss\": ", 4 / x, ", \"accuracy\": ", 0.1 * x, "}"));
    }
    report.write(metrics.history());
    _exit(0);  // as killed: no destructor writes anything
  } catch (const hanok::Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
