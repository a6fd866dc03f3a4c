// Times of kernels on a GPU, and the bandwidth they reach beside that of a device copy.
#pragma once

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace hanok {

inline at::TensorOptions on(at::ScalarType dtype) {
  return at::device(at::kCUDA).dtype(dtype);
}
inline Tensor randn(at::IntArrayRef shape, at::ScalarType dtype = at::kBFloat16) {
  return at::randn(shape, on(dtype));
}
inline double bytes_of(const Tensor& x) {
  return static_cast<double>(x.nbytes());
}

/// Median of 15 runs. A product before each of them keeps the GPU busy until the run is queued, as the kernels before
/// it do in training; it leaves the caches without anything that would have to be written back.
inline double median_us(const std::function<void()>& body) {
  static const Tensor left = randn({1024, 32768}), right = randn({32768, 1024});
  const c10::impl::VirtualGuardImpl device(at::kCUDA);
  const c10::Stream stream = device.getStream(c10::Device(at::kCUDA, 0));
  for (int i = 0; i < 3; ++i) body();
  std::vector<double> times;
  for (int i = 0; i < 15; ++i) {
    c10::Event begin(at::kCUDA, c10::EventFlag::BACKEND_DEFAULT), end(at::kCUDA, c10::EventFlag::BACKEND_DEFAULT);
    const Tensor product = at::mm(left, right);
    begin.record(stream);
    body();
    end.record(stream);
    end.synchronize();
    times.push_back(begin.elapsedTime(end) * 1000);
  }
  std::nth_element(times.begin(), times.begin() + 7, times.end());
  return times[7];
}

struct Bench {
  double copy_rate = 0;  // bytes a second
  void operator()(const std::string& name, double bytes, const std::function<void()>& body) const {
    const double us = median_us(body), rate = bytes / us * 1e6;
    std::printf(
        "%-52s %9.1f MB %9.1f us %7.0f GB/s  %.3f\n", name.c_str(), bytes / 1e6, us, rate / 1e9, rate / copy_rate);
  }
};

}  // namespace hanok
