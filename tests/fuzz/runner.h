// Executes a target on its seeds and on what mutations make of them, and keeps what reaches new branches.
#pragma once

#include <cstdint>
#include <string>

#include "tests/fuzz/fuzz.h"

namespace hanok::fuzz {

struct Options {
  int64_t runs = 20000;
  uint64_t seed = 1;
  double seconds = 0;          // 0: no limit
  std::string corpus;          // folder of inputs to begin with and to add to; empty: none
  std::string findings = ".";  // folder for inputs that are findings
};

/// Prints one line of figures, and each finding. Returns the number of findings.
/// A crash ends the process: the input is written first.
int run_target(const Target& target, const Options& options);
/// One file, once, with what came of it.
int run_file(const Target& target, const std::string& path);

}  // namespace hanok::fuzz
