#include "parallel/init.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "parallel/philox.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

using Counter = std::array<uint32_t, 4>;

// source: kat_vectors of Random123 1.14, "philox4x32 10".
TEST(Philox, GivesTheKnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
  EXPECT_EQ(random_bits(0, 0), 0xe169c58d6627e8d5u);
}

TEST(Philox, KeysDependOnSeedAndName) {
  EXPECT_NE(key_of(1, "a"), key_of(2, "a"));
  EXPECT_NE(key_of(1, "a"), key_of(1, "b"));
  EXPECT_EQ(key_of(7, "decoder.embed.weight"), key_of(7, "decoder.embed.weight"));
}

Param make_param(const ParamSpec& spec, const Groups& groups, at::ScalarType dtype) {
  return {.spec = spec, .value = at::full(local_shape(spec, groups), NAN, at::TensorOptions().dtype(dtype))};
}

Tensor global_values(const ParamSpec& spec, at::ScalarType dtype, uint64_t seed) {
  const Groups groups = make_single_groups();
  Param param = make_param(spec, groups, dtype);
  initialise(param, seed, groups);
  return param.value;
}

/// Reassembles the global tensor from all ranks and compares bit by bit.
void expect_same_on_any_cut(const ParamSpec& spec, int tp, at::ScalarType dtype) {
  const Tensor whole = global_values(spec, dtype, 11).view(-1);
  run_on_threads(tp, [&](World& world) {
    const Groups groups = make_groups(world, Mesh({.tp = tp}), false);
    Param param = make_param(spec, groups, dtype);
    initialise(param, 11, groups);
    const Tensor local = param.value.view(-1);
    for (const FlatRun& run : flat_runs(spec, groups)) {
      EXPECT_TRUE(at::equal(local.narrow(0, run.local_begin, run.size), whole.narrow(0, run.global_begin, run.size)))
          << spec.name << " tp " << tp;
    }
    EXPECT_FALSE(local.isnan().any().item<bool>());
  });
}

TEST(Initialise, GivesTheSameGlobalTensorUnderAnyCut) {
  const std::vector<Segment> qkv = {{12 * 3, 3}, {4 * 3, 3}, {4 * 3, 3}};
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    for (const int tp : {1, 2, 3, 4, 6}) {
      ParamSpec vocab{
          .name = "v", .shape = {37, 5}, .cut_dim = 0, .segments = {{37, 1}}, .uneven = true, .init = normal(1)};
      expect_same_on_any_cut(vocab, tp, dtype);
      expect_same_on_any_cut({.name = "whole", .shape = {7, 9}, .init = normal(0.5)}, tp, dtype);
      expect_same_on_any_cut({.name = "ones", .shape = {7}, .init = ones()}, tp, dtype);
      expect_same_on_any_cut({.name = "zeros", .shape = {7}, .init = zeros()}, tp, dtype);
      if (tp == 3 || tp == 6) continue;  // 4 kv heads do not fit
      expect_same_on_any_cut(
          {.name = "qkv", .shape = {60, 7}, .cut_dim = 0, .segments = qkv, .init = normal(1)}, tp, dtype);
      expect_same_on_any_cut(
          {.name = "out", .shape = {7, 60}, .cut_dim = 1, .segments = qkv, .init = normal(1)}, tp, dtype);
    }
  }
}

TEST(Initialise, DoesNotDependOnTheNumberOfThreads) {
  const ParamSpec spec{.name = "w", .shape = {301, 1001}, .init = normal(0.02)};
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Tensor one = global_values(spec, at::kFloat, 5);
  at::set_num_threads(3);
  const Tensor three = global_values(spec, at::kFloat, 5);
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(one, three));
}

TEST(Initialise, ValuesAreNormalWithTheGivenStandardDeviation) {
  const int64_t n = 1 << 20;
  const Tensor x =
      global_values({.name = "w", .shape = {n}, .init = normal(0.02)}, at::kFloat, 3).to(at::kDouble) / 0.02;
  const double root_n = std::sqrt(static_cast<double>(n));
  // Five standard errors of each moment of a standard normal.
  EXPECT_LT(std::abs(x.mean().item<double>()), 5 / root_n);
  EXPECT_LT(std::abs(x.square().mean().item<double>() - 1), 5 * std::sqrt(2.0) / root_n);
  EXPECT_LT(std::abs(x.pow(3).mean().item<double>()), 5 * std::sqrt(15.0) / root_n);
  EXPECT_LT(std::abs(x.pow(4).mean().item<double>() - 3), 5 * std::sqrt(96.0) / root_n);
  const double neighbours = (x.narrow(0, 0, n - 1) * x.narrow(0, 1, n - 1)).mean().item<double>();
  EXPECT_LT(std::abs(neighbours), 5 / root_n);
  const double tail = (x.abs() > 3).to(at::kDouble).mean().item<double>(), expected = 0.0026997960632601866;
  EXPECT_LT(std::abs(tail - expected), 5 * std::sqrt(expected) / root_n);
}

TEST(Initialise, SeedsAndNamesGiveDifferentValues) {
  const auto values = [](const std::string& name, uint64_t seed) {
    return global_values({.name = name, .shape = {64}, .init = normal(1)}, at::kFloat, seed);
  };
  EXPECT_FALSE(at::equal(values("a", 1), values("a", 2)));
  EXPECT_FALSE(at::equal(values("a", 1), values("b", 1)));
}

TEST(Initialise, RefusesATensorOfAnotherShapeByName) {
  Param param{.spec = {.name = "decoder.norm.weight", .shape = {4}, .init = ones()}, .value = at::empty({5})};
  EXPECT_ERROR(error_of([&] { initialise(param, 0, make_single_groups()); }), ErrorKind::kShape, "decoder.norm.weight");
}

}  // namespace
}  // namespace hanok
