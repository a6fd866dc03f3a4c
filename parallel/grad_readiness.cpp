#include "parallel/grad_readiness.h"

namespace hanok {

GradReadiness::GradReadiness(const GradLayout& layout, size_t num_params) : gradients_(num_params) {
  for (size_t i = 0; i < layout.buckets.size(); ++i) {
    const GradBucket& bucket = layout.buckets[i];
    num_shared_ += bucket.is_shared;
    sizes_.push_back(static_cast<int>(bucket.places.size()));
    for (const GradPlace& place : bucket.places) gradients_[place.param].bucket = static_cast<int>(i);
  }
  start();
}

void GradReadiness::start() {
  missing_ = sizes_;
  left_ = sizes_.size();
  for (Gradient& gradient : gradients_) gradient = {.bucket = gradient.bucket};
}

void GradReadiness::expect_last(int param, bool only_put_off) {
  Gradient& gradient = gradients_[param];
  gradient.is_expected = true;
  gradient.has_passed = only_put_off;
  if (only_put_off && gradient.put_off == 0) complete(gradient);
}

void GradReadiness::expect_no_more(int param) {
  complete(gradients_[param]);
}

void GradReadiness::backward_passed(int param) {
  Gradient& gradient = gradients_[param];
  gradient.has_passed = gradient.is_expected;
  if (gradient.is_expected && gradient.put_off == 0) complete(gradient);
}

void GradReadiness::put_off(int param) {
  ++gradients_[param].put_off;
}

void GradReadiness::added(int param) {
  Gradient& gradient = gradients_[param];
  // A product that a layer put off may come before autograd is through with the layer's weights.
  if (--gradient.put_off == 0 && gradient.has_passed) complete(gradient);
}

void GradReadiness::complete(Gradient& gradient) {
  if (gradient.bucket < 0 || gradient.is_complete) return;
  gradient.is_complete = true;
  --missing_[gradient.bucket];
}

std::optional<size_t> GradReadiness::take_next(bool even_if_incomplete) {
  if (left_ == num_shared_) return std::nullopt;
  if (missing_[left_ - 1] > 0 && !even_if_incomplete) return std::nullopt;
  return --left_;
}

bool GradReadiness::has_left(int param) const {
  const int bucket = gradients_[param].bucket;
  return bucket >= 0 && static_cast<size_t>(bucket) >= left_;
}

}  // namespace hanok
