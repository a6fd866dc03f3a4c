// Bytes that this process holds, counted at every malloc and free.
#pragma once

#include <cstddef>

namespace hanok::fuzz {

/// Beyond it an allocation ends the process: an input that asks for it is a finding, and must not take the machine
/// down.
constexpr size_t kMaxHeldBytes = size_t{4} << 30;

/// Once, before anything is counted.
void count_allocations();
/// Forgets the peak; what is held now counts as nothing.
void reset_peak();
/// The most that has been held since reset_peak().
size_t peak_bytes();

}  // namespace hanok::fuzz
