// Cases that every back-end must pass, for any number of ranks: the operations (comm_suite.cpp) and the conjugate pairs
// (collectives_suite.cpp). Each is called once per rank, and every rank knows the input of all.
#pragma once

#include <vector>

#include "parallel/groups.h"

namespace hanok {

struct Site {
  World& world;
  at::Device device = at::kCPU;
  bool ordered_sums = true;  // float sums are made in rank order: results are compared bit by bit
};

struct CommCase {
  const char* name;
  void (*run)(const Site& site);
};

std::vector<CommCase> comm_cases();
std::vector<CommCase> collective_cases();

/// All ranks of the world as one group.
std::shared_ptr<Comm> open_all(World& world, std::string_view kind = "suite");

/// Deterministic values of a rank: floats of very different sizes (so that the order of a sum shows), small integers,
/// booleans.
Tensor sample(at::ScalarType dtype, const std::vector<int64_t>& shape, uint64_t seed, int rank);

}  // namespace hanok
