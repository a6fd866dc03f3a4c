// Values of files into tensors of a device, by several threads. Private to trainer/.
#pragma once

#include <functional>
#include <vector>

#include "base/tensor.h"
#include "trainer/host_memory.h"

namespace hanok {

struct Filling {
  Tensor to;             // 1-D, contiguous, on any device
  at::ScalarType dtype;  // that `read` gives; converted where `to` has another
  /// Fills a tensor of that dtype with the values from `begin` on; called from any thread.
  std::function<void(int64_t begin, Tensor& host)> read;
};

struct FillOptions {
  int64_t threads = helping_threads();
  int64_t stretch = int64_t{4} << 20;  // values at once, so that threads share a large tensor
};
/// Fills all of them; returns when the values are there. On a GPU through pinned memory, reading beside copying.
/// errors: what `read` throws
void fill(const std::vector<Filling>& fillings, at::Device device, const FillOptions& options = {});

}  // namespace hanok
