#include "parallel/pass_times.h"

#include <algorithm>
#include <array>

namespace hanok {
namespace {

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

void PassTimes::begin(const Action& action, int piece) {
  passes_.push_back({action, piece, Moment::now(device_), {}});
}

void PassTimes::end() {
  passes_.back().end = Moment::now(device_);
}

std::vector<PassCosts> PassTimes::costs(int pieces) const {
  std::vector<std::array<std::vector<double>, 3>> seconds(pieces);
  for (const Pass& pass : passes_) {
    pass.end.wait();
    const bool is_weight = pass.action.kind == Action::Kind::kBackwardWeight;
    const size_t part = pass.action.kind == Action::Kind::kForward ? 0 : is_weight ? 2 : 1;
    seconds.at(pass.piece)[part].push_back(pass.end.seconds_since(pass.begin));
  }
  std::vector<PassCosts> out;
  for (const auto& [forward, backward, weight] : seconds)
    out.push_back({median(forward), median(backward), median(weight)});
  return out;
}

int PassTimes::micro_batches() const {
  int out = 0;
  for (const Pass& pass : passes_) out = std::max(out, pass.action.micro_batch + 1);
  return out;
}

std::vector<PassTimes::Span> PassTimes::spans(const Moment& zero) const {
  std::vector<Span> out;
  for (const Pass& pass : passes_) {
    pass.end.wait();
    out.push_back({pass.action, pass.piece, pass.begin.seconds_since(zero), pass.end.seconds_since(zero)});
  }
  return out;
}

}  // namespace hanok
