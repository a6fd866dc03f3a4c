#include "trainer/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"

namespace hanok {
namespace {

/// Share of the way from the peak down to the final rate: 0 at step `from`, 1 at the last step.
double decayed(int64_t step, int64_t from, int64_t num_steps) {
  const int64_t last = num_steps - 1;
  if (step <= from || last <= from) return 0;
  return std::min(1.0, static_cast<double>(step - from) / static_cast<double>(last - from));
}

}  // namespace

int64_t warmup_steps(const OptimizerConfig& config, int64_t num_steps, double tokens_per_step) {
  const auto whole = [](double steps) { return static_cast<int64_t>(std::min(std::ceil(steps), 0x1p62)); };
  if (config.warmup_tokens > 0) return whole(config.warmup_tokens / std::max(tokens_per_step, 1.0));
  if (config.warmup_share > 0) return whole(config.warmup_share * static_cast<double>(num_steps));
  return config.warmup_steps;
}

double lr_at(const OptimizerConfig& config, int64_t step, int64_t num_steps, double tokens_per_step) {
  const int64_t warmup = std::min(warmup_steps(config, num_steps, tokens_per_step), num_steps);
  if (step < warmup) return config.lr * static_cast<double>(step + 1) / static_cast<double>(warmup);

  const int64_t peak = std::max<int64_t>(warmup - 1, 0);
  const double low = config.min_lr_ratio;
  double share = 1;  // of the peak rate
  if (config.schedule == "cosine") {
    share = low + (1 - low) * 0.5 * (1 + std::cos(std::numbers::pi * decayed(step, peak, num_steps)));
  } else if (config.schedule == "linear") {
    share = 1 - (1 - low) * decayed(step, peak, num_steps);
  } else if (config.schedule == "wsd") {
    const auto decay = static_cast<int64_t>(std::llround(config.decay_share * static_cast<double>(num_steps)));
    share = 1 - (1 - low) * decayed(step, std::max(peak, num_steps - 1 - decay), num_steps);
  } else {
    HANOK_REQUIRE(config.schedule == "constant", kConfig)
        << "optimizer.schedule: got " << config.schedule << ", expected cosine, linear, wsd or constant";
  }
  return config.lr * share;
}

}  // namespace hanok
