// Initial values that do not know the layout: counter-based, keyed by (seed, parameter name, global index).
#pragma once

#include "parallel/param.h"

namespace hanok {

/// 64 random bits for (key, counter): the Philox-4x32-10 generator. source: Salmon et al., SC'11.
uint64_t random_bits(uint64_t key, uint64_t counter);
uint64_t key_of(uint64_t seed, std::string_view name);

/// Fills the local piece so that every mesh holds the same global tensor. Normal values by Box-Muller in f64, rounded
/// to the dtype.
void initialise(Param& param, uint64_t seed, const Groups& groups);

}  // namespace hanok
