#include "base/cuda/device.cuh"
#include "model/kernels/grouped_linear_cuda.h"

namespace hanok {
namespace cuda {
namespace {

template <class T, int N>
__global__ void __launch_bounds__(256)
    add_shares(T* sum, const __nv_bfloat16* share, const int* ends, int64_t experts, int64_t packs, bool is_empty) {
  for (int64_t e = blockIdx.y; e < experts; e += gridDim.y) {
    const bool has_rows = ends[e] > (e > 0 ? ends[e - 1] : 0);
    if (!has_rows && !is_empty) continue;
    const int64_t step = gridDim.x * int64_t{256};
    for (int64_t at = blockIdx.x * int64_t{256} + threadIdx.x; at < packs; at += step) {
      const int64_t place = (e * packs + at) * N;
      Pack<__nv_bfloat16, N> more;
      Pack<T, N> to = {};
      if (has_rows) more = load<N>(share + place);
      if (!is_empty) to = load<N>(sum + place);
#pragma unroll
      for (int i = 0; i < N && has_rows; ++i)
        to.v[i] = narrow<T>(widen(to.v[i]) + static_cast<Wide<T>>(widen(more.v[i])));
      store<N>(sum + place, to);
    }
  }
}

template <class T, int N>
void add_on(const AddExpertShares& a) {
  const int64_t packs = a.size / N;
  const dim3 grid(static_cast<unsigned>(std::clamp<int64_t>(divide_up(packs, 256), 1, 512)),
                  static_cast<unsigned>(std::min<int64_t>(a.experts, 65535)));
  add_shares<T, N><<<grid, 256, 0, a.call.stream>>>(
      static_cast<T*>(a.sum), static_cast<const __nv_bfloat16*>(a.share), a.ends, a.experts, packs, a.is_empty);
}

}  // namespace
}  // namespace cuda

void launch(const AddExpertShares& args) {
  if (args.experts == 0 || args.size == 0) return;
  cuda::dispatch(args.call.type, [&](auto tag) {
    using T = decltype(tag);
    constexpr int N = cuda::kPackOf<T>;
    const bool fits =
        cuda::fits_packs<N, T>(args.size, args.sum) && cuda::fits_packs<N, __nv_bfloat16>(args.size, args.share);
    fits ? cuda::add_on<T, N>(args) : cuda::add_on<T, 1>(args);
  });
  cuda::check_launch("grouped_linear: gradients");
}

}  // namespace hanok
