// Loops of the CPU kernels, compiled for three vector widths; the widest that the machine has is chosen at run time, so
// that the build stays portable. A kernel is a functor whose operator() is HANOK_SIMD_BODY and takes a Width first.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace hanok::simd {

#define HANOK_SIMD_BODY inline __attribute__((always_inline))

/// Bytes of one vector register.
template <int kBytes>
struct Width {
  static constexpr int bytes = kBytes;
};

enum class Level { kBaseline, kAvx2, kAvx512 };
Level level();

#if defined(__x86_64__)
template <class Body, class... Args>
__attribute__((target("avx2,fma"))) void run_avx2(const Body& body, Args... args) {
  body(Width<32>{}, args...);
}
template <class Body, class... Args>
__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))) void run_avx512(const Body& body, Args... args) {
  body(Width<64>{}, args...);
}
#endif

/// body(Width, args...) with the instructions of this machine. Arguments are passed by value: pointers and numbers.
template <class Body, class... Args>
void call(const Body& body, Args... args) {
#if defined(__x86_64__)
  if (level() == Level::kAvx512) return run_avx512(body, args...);
  if (level() == Level::kAvx2) return run_avx2(body, args...);
#endif
  body(Width<16>{}, args...);
}

/// e^x within 2 ulp, as straight-line code that loops vectorise. source: Cephes expf (range reduction by ln 2 in two
/// parts).
HANOK_SIMD_BODY float exp(float x) {
  x = x > 88.3762626647949f ? 88.3762626647949f : x;
  x = x < -87.3365478515625f ? -87.3365478515625f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float n = (x * 1.44269504088896341f + kRound) - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}
HANOK_SIMD_BODY double exp(double x) {
  return std::exp(x);
}

}  // namespace hanok::simd
