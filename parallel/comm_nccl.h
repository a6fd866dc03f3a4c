// The NCCL back-end as the MPI world sees it. Two implementations: comm_nccl.cpp, and comm_nccl_absent.cpp in builds
// without it.
#pragma once

#include <functional>
#include <memory>

#include "parallel/comm.h"

namespace hanok {

class Error;
class NcclWatchdog;
class ProgressLine;

/// errors: kDevice if this build has no NCCL back-end, or no GPU is visible.
void require_nccl();

/// What watches the communicators of one world; `end_process` as make_mpi_world says. Infinite `stall_timeout_s`: waits
/// may last for ever.
std::shared_ptr<NcclWatchdog> start_nccl_watchdog(double stall_timeout_s,
                                                  std::function<void(const Error&)> end_process);

/// A communicator on the current CUDA device over the ranks of `host`, which carries the NCCL id. NCCL's own resources
/// are taken at the first operation, because most layouts leave some groups unused; so the first operation is
/// collective, also if it is a send or recv; and the first offer or take likewise. `peer_links`: as make_mpi_world says
std::shared_ptr<Comm> open_nccl(std::string_view kind,
                                const std::vector<int>& ranks,
                                const std::shared_ptr<Comm>& host,
                                const std::shared_ptr<NcclWatchdog>& watchdog,
                                std::shared_ptr<const ProgressLine> progress,
                                bool peer_links);

}  // namespace hanok
