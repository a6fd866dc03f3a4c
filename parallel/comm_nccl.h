// The NCCL back-end as the MPI world sees it. Two implementations: comm_nccl.cpp, and comm_nccl_absent.cpp in builds
// without it.
#pragma once

#include <memory>

#include "parallel/comm.h"

namespace hanok {

/// errors: kDevice if this build has no NCCL back-end, or no GPU is visible.
void require_nccl();

/// A communicator on the current CUDA device over the ranks of `host`, which carries the NCCL id. NCCL's own resources
/// are taken at the first operation, because most layouts leave some groups unused; so the first operation is
/// collective, also if it is a send or recv.
std::shared_ptr<Comm> open_nccl(std::string_view kind,
                                const std::vector<int>& ranks,
                                const std::shared_ptr<Comm>& host,
                                double stall_timeout_s);

}  // namespace hanok
