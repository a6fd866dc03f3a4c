// Which program this is, for checkpoints, logs and `doctor`.
#pragma once

#include <string>

namespace hanok {

std::string program_version();  // "0.1.0"
/// Commit of the sources when the build was configured, with "+" behind it if they had changes; empty if not known.
std::string git_commit();

}  // namespace hanok
