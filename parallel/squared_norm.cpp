#include "parallel/squared_norm.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>

#include "base/cuda/call.h"
#include "parallel/squared_norm_cuda.h"

namespace hanok {
namespace {

constexpr int64_t kBlock = 1 << 15;  // each block has its own sum, and sums are added in order: threads change no bit

template <class T>
double sum_of_squares(const T* x, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

template <class T>
double on_host(const T* x, const std::vector<Stretch>& stretches) {
  std::vector<Stretch> blocks;
  for (const Stretch& stretch : stretches)
    for (int64_t done = 0; done < stretch.size; done += kBlock)
      blocks.push_back({stretch.begin + done, std::min(kBlock, stretch.size - done)});
  std::vector<double> sums(blocks.size());
  at::parallel_for(0, static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sums[i] = sum_of_squares(x + blocks[i].begin, blocks[i].size);
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

double on_host(const Tensor& x, const std::vector<Stretch>& stretches) {
  switch (x.scalar_type()) {
    case at::kFloat: return on_host(x.const_data_ptr<float>(), stretches);
    case at::kDouble: return on_host(x.const_data_ptr<double>(), stretches);
    case at::kBFloat16: return on_host(x.const_data_ptr<at::BFloat16>(), stretches);
    default: return on_host(x.to(at::kFloat).const_data_ptr<float>(), stretches);
  }
}

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
  return at::scalar_tensor(on_host(x, stretches), x.options().dtype(at::kDouble));
}

}  // namespace hanok
