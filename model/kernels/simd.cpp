#include "model/kernels/simd.h"

namespace hanok::simd {

Level level() {
#if defined(__x86_64__)
  static const Level kLevel = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
      return Level::kAvx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Level::kAvx2;
    return Level::kBaseline;
  }();
  return kLevel;
#else
  return Level::kBaseline;
#endif
}

}  // namespace hanok::simd
