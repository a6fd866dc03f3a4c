#include "base/cuda/device.cuh"
#include "trainer/adamw_update_cuda.h"

namespace hanok {
namespace cuda {
namespace {

constexpr int kThreads = 256, kPack = 4, kPacksAtOnce = 2;
constexpr int64_t kChunk = int64_t{kThreads} * kPack * kPacksAtOnce;  // elements a block takes at a time
constexpr int kRunsAtOnce = 96;                                       // what fits into the arguments of a launch

/// Runs of one launch. Chunks are counted through all of them: first_chunk[r] is the number of chunks before run r.
struct Runs {
  int64_t begin[kRunsAtOnce];
  int64_t size[kRunsAtOnce];
  int first_chunk[kRunsAtOnce + 1];
  double rate[kRunsAtOnce];
  float keep[kRunsAtOnce];  // 1 - rate * weight_decay
  int count;
};

/// What one element needs, rounded to f32 once as torch does.
struct Factors {
  float grad_scale, weight1, beta2, weight2, root_correction2, eps;
};

__device__ inline void update(float& p, float& m, float& v, float grad, float keep, float step_size, const Factors& f) {
  const float g = grad * f.grad_scale;
  m = m + f.weight1 * (g - m);
  v = v * f.beta2 + f.weight2 * g * g;
  p = p * keep - step_size * m / (sqrtf(v) / f.root_correction2 + f.eps);
}

template <class Grad, class Rounded>
__device__ inline void update_pack(float* values,
                                   float* m,
                                   float* v,
                                   const Grad* grad,
                                   Rounded* rounded,
                                   float keep,
                                   float step_size,
                                   const Factors& f) {
  Pack<float, kPack> p = load<kPack>(values), first = load<kPack>(m), second = load<kPack>(v);
  const Pack<Grad, kPack> g = load<kPack>(grad);
#pragma unroll
  for (int i = 0; i < kPack; ++i) update(p.v[i], first.v[i], second.v[i], widen(g.v[i]), keep, step_size, f);
  store<kPack>(values, p);
  store<kPack>(m, first);
  store<kPack>(v, second);
  if (!rounded) return;
  Pack<Rounded, kPack> out;
#pragma unroll
  for (int i = 0; i < kPack; ++i) out.v[i] = narrow<Rounded>(p.v[i]);
  store<kPack>(rounded, out);
}

template <class Grad, class Rounded>
__global__ void __launch_bounds__(kThreads) adamw(float* values,
                                                  float* m,
                                                  float* v,
                                                  const Grad* grad,
                                                  Rounded* rounded,
                                                  const float* grad_scale,
                                                  const bool* apply,
                                                  const int64_t* steps,
                                                  double beta1,
                                                  double beta2,
                                                  float eps,
                                                  bool aligned,
                                                  __grid_constant__ const Runs runs) {
  __shared__ Factors factors;
  __shared__ double correction1;
  if (!*apply) return;
  if (threadIdx.x == 0) {
    const double exponent = static_cast<double>(*steps);
    factors = {*grad_scale,
               static_cast<float>(1 - beta1),
               static_cast<float>(beta2),
               static_cast<float>(1 - beta2),
               static_cast<float>(sqrt(1 - pow(beta2, exponent))),
               eps};
    correction1 = 1 - pow(beta1, exponent);
  }
  __syncthreads();
  const Factors f = factors;
  for (int chunk = blockIdx.x; chunk < runs.first_chunk[runs.count]; chunk += gridDim.x) {
    int run = 0, last = runs.count - 1;
    while (run < last) {
      const int middle = (run + last + 1) / 2;
      if (runs.first_chunk[middle] <= chunk)
        run = middle;
      else
        last = middle - 1;
    }
    const int64_t begin = runs.begin[run] + (chunk - runs.first_chunk[run]) * kChunk;
    const int64_t end = min(begin + kChunk, runs.begin[run] + runs.size[run]);
    const float keep = runs.keep[run], step_size = static_cast<float>(runs.rate[run] / correction1);
    if (aligned && begin % kPack == 0 && end - begin == kChunk) {
#pragma unroll
      for (int p = 0; p < kPacksAtOnce; ++p) {
        const int64_t i = begin + (p * kThreads + threadIdx.x) * kPack;
        update_pack(values + i, m + i, v + i, grad + i, rounded ? rounded + i : nullptr, keep, step_size, f);
      }
    } else {
      for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
        update(values[i], m[i], v[i], widen(grad[i]), keep, step_size, f);
        if (rounded) rounded[i] = narrow<Rounded>(values[i]);
      }
    }
  }
}

template <class Grad, class Rounded>
void run_all(const AdamWKernel& a) {
  const bool aligned = fits_packs<kPack, float>(0, a.values, a.m, a.v) && fits_packs<kPack, Grad>(0, a.grad) &&
                       fits_packs<kPack, Rounded>(0, a.rounded);
  for (int64_t first = 0; first < a.num_runs; first += kRunsAtOnce) {
    Runs runs{};
    runs.count = static_cast<int>(std::min<int64_t>(kRunsAtOnce, a.num_runs - first));
    for (int i = 0; i < runs.count; ++i) {
      const AdamWRun& run = a.runs[first + i];
      runs.begin[i] = run.begin;
      runs.size[i] = run.size;
      runs.rate[i] = run.rate;
      runs.keep[i] = static_cast<float>(1 - run.decay);
      runs.first_chunk[i + 1] = runs.first_chunk[i] + static_cast<int>(divide_up(run.size, kChunk));
    }
    const int chunks = runs.first_chunk[runs.count];
    if (chunks == 0) continue;
    const int blocks = std::min(chunks, resident_blocks(adamw<Grad, Rounded>, kThreads));
    adamw<Grad, Rounded><<<blocks, kThreads, 0, a.call.stream>>>(a.values,
                                                                 a.m,
                                                                 a.v,
                                                                 static_cast<const Grad*>(a.grad),
                                                                 static_cast<Rounded*>(a.rounded),
                                                                 a.grad_scale,
                                                                 a.apply,
                                                                 a.steps,
                                                                 a.beta1,
                                                                 a.beta2,
                                                                 static_cast<float>(a.eps),
                                                                 aligned,
                                                                 runs);
    check_launch("adamw");
  }
}

template <class Grad>
void run_with(const AdamWKernel& a) {
  switch (a.rounded_type) {
    case CudaType::kF32: return run_all<Grad, float>(a);
    case CudaType::kBf16: return run_all<Grad, __nv_bfloat16>(a);
    case CudaType::kF16: return run_all<Grad, __half>(a);
    case CudaType::kF64: return run_all<Grad, double>(a);
  }
}

}  // namespace
}  // namespace cuda

void launch(const AdamWKernel& a) {
  switch (a.call.type) {
    case CudaType::kF32: return cuda::run_with<float>(a);
    case CudaType::kBf16: return cuda::run_with<__nv_bfloat16>(a);
    case CudaType::kF64: return cuda::run_with<double>(a);
    default: HANOK_FAIL(kShape) << "adamw: expected a gradient of float32, bfloat16 or float64";
  }
}

}  // namespace hanok
