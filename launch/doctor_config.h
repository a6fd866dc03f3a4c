// What of a config would fail on this machine, without starting it.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "launch/command.h"

namespace hanok {

struct Problem {
  ErrorKind kind;
  std::string text;
};

/// In the order in which a run would meet them. `local_ranks`: on this machine.
std::vector<Problem> config_problems(const Arguments& arguments, int world_size, int local_ranks);

}  // namespace hanok
