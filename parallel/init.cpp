#include "parallel/init.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <cmath>

#include "base/error.h"
#include "parallel/philox.h"

namespace hanok {

namespace {

constexpr double kTwoPi = 6.283185307179586;

std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter) {
  return philox4x32({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0},
                    {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)});
}

uint64_t join(uint32_t low, uint32_t high) {
  return uint64_t{high} << 32 | low;
}

/// The normal values of global indices 2 * pair and 2 * pair + 1 (Box and Muller).
std::array<double, 2> normal_pair(uint64_t key, uint64_t pair) {
  const std::array<uint32_t, 4> bits = philox(key, pair);
  const double radius_draw =
      static_cast<double>((join(bits[0], bits[1]) >> 11) + 1) * 0x1p-53;                  // (0, 1]: log is finite
  const double angle_draw = static_cast<double>(join(bits[2], bits[3]) >> 11) * 0x1p-53;  // [0, 1)
  const double radius = std::sqrt(-2.0 * std::log(radius_draw));
  return {radius * std::cos(kTwoPi * angle_draw), radius * std::sin(kTwoPi * angle_draw)};
}

/// out[0 .. size) = std * normal values of the global indices from `begin`.
template <class T>
void fill_normal(T* out, uint64_t begin, int64_t size, uint64_t key, double std) {
  int64_t i = 0;
  if (begin % 2 == 1 && size > 0) out[i++] = static_cast<T>(std * normal_pair(key, begin / 2)[1]);
  for (; i + 1 < size; i += 2) {
    const std::array<double, 2> values = normal_pair(key, (begin + i) / 2);
    out[i] = static_cast<T>(std * values[0]);
    out[i + 1] = static_cast<T>(std * values[1]);
  }
  if (i < size) out[i] = static_cast<T>(std * normal_pair(key, (begin + i) / 2)[0]);
}

template <class T>
void fill_runs(T* out, const std::vector<FlatRun>& runs, uint64_t key, double std) {
  if (runs.empty()) return;
  constexpr int64_t kGrain = 1 << 14;
  at::parallel_for(0, runs.back().local_begin + runs.back().size, kGrain, [&](int64_t begin, int64_t end) {
    auto run = std::upper_bound(
        runs.begin(), runs.end(), begin, [](int64_t at, const FlatRun& other) { return at < other.local_begin; });
    for (--run; run != runs.end() && run->local_begin < end; ++run) {
      const int64_t first = std::max(begin, run->local_begin);
      const int64_t last = std::min(end, run->local_begin + run->size);
      fill_normal(
          out + first, static_cast<uint64_t>(run->global_begin + first - run->local_begin), last - first, key, std);
    }
  });
}

}  // namespace

uint64_t random_bits(uint64_t key, uint64_t counter) {
  const std::array<uint32_t, 4> bits = philox(key, counter);
  return join(bits[0], bits[1]);
}

uint64_t key_of(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a; the generator below does the mixing
  for (const char letter : name) hash = (hash ^ static_cast<unsigned char>(letter)) * 0x100000001b3;
  return random_bits(hash, seed);
}

void initialise(Param& param, uint64_t seed, const Groups& groups) {
  at::NoGradGuard no_grad;
  Tensor& value = param.value;
  const std::vector<int64_t> shape = local_shape(param.spec, groups);
  HANOK_REQUIRE(value.defined() && value.sizes() == at::IntArrayRef(shape), kShape)
      << param.spec.name << ": got a local tensor of shape "
      << (value.defined() ? value.sizes().vec() : std::vector<int64_t>{}) << ", expected " << shape
      << "; initial values; allocate the local shape of the parameter";
  if (value.is_meta()) return;
  switch (param.spec.init.kind) {
    case Init::Kind::kZeros: value.zero_(); return;
    case Init::Kind::kOnes: value.fill_(1); return;
    case Init::Kind::kNormal: break;
  }
  Tensor host = value.is_cpu() && value.is_contiguous()
                    ? value.detach()
                    : at::empty(shape, value.options().device(at::kCPU).requires_grad(false));
  const std::vector<FlatRun> runs = flat_runs(param.spec, groups);
  const uint64_t key = key_of(seed, param.spec.name);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, host.scalar_type(), "initialise", [&] {
    fill_runs(host.data_ptr<scalar_t>(), runs, key, param.spec.init.std);
  });
  if (!host.is_alias_of(value)) value.copy_(host);
}

}  // namespace hanok
