#include "parallel/squared_norm.h"

#include "base/cuda/call.h"
#include "parallel/squared_norm_cuda.h"

namespace hanok {
namespace {

constexpr int64_t kElementsAtOnce = int64_t{1} << 24;  // bounds the temporary

Tensor on_cuda(const Tensor& x, const std::vector<Stretch>& stretches) {
  std::vector<int64_t> begin, size;
  for (const Stretch& stretch : stretches) {
    begin.push_back(stretch.begin);
    size.push_back(stretch.size);
  }
  const auto options = x.options().dtype(at::kDouble);
  const CudaCall call = cuda_call(x, "squared_norm");
  Tensor partial = at::empty({squared_norm_partials()}, options), sum = at::empty({}, options);
  launch(SquaredNorm{.call = call,
                     .x = data_of(x),
                     .begin = begin.data(),
                     .size = size.data(),
                     .num_stretches = static_cast<int64_t>(begin.size()),
                     .partial = partial.mutable_data_ptr<double>(),
                     .sum = sum.mutable_data_ptr<double>()});
  return sum;
}

}  // namespace

Tensor squared_norm(const Tensor& x, const std::vector<Stretch>& stretches) {
  if (!x.is_cpu()) return on_cuda(x, stretches);
  Tensor sum = at::zeros({}, x.options().dtype(at::kDouble));
  for (const Stretch& stretch : stretches) {
    for (int64_t done = 0; done < stretch.size; done += kElementsAtOnce) {
      const int64_t count = std::min(kElementsAtOnce, stretch.size - done);
      sum += x.narrow(0, stretch.begin + done, count)
                 .to(at::kDouble, /*non_blocking=*/false, /*copy=*/true)
                 .square_()
                 .sum();
    }
  }
  return sum;
}

}  // namespace hanok
